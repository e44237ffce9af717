"""The examples run, and are short."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from tiny_images import encoded, pixels

from crlf.methods import METHODS

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short_and_says_how_it_is_called(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60 and f"python examples/{path.name}" in text


def test_a_folder_becomes_a_scikit_learn_model(tmp_path: Path, narrow: None):
    for seed in range(40):
        place = tmp_path / "photos" / ("cat", "dog")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    example = runpy.run_path(str(EXAMPLES / "folder_to_sklearn.py"))
    found = example["main"](str(tmp_path / "photos"), 0.02, str(tmp_path / "run"))
    assert 0 <= found["accuracy"] <= 1 and -1 <= found["rand_index"] <= 1


@pytest.mark.long
def test_a_method_of_ones_own_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: None, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "triplet", None)  # taken away again afterwards
    runpy.run_path(str(EXAMPLES / "new_method.py"), run_name="__main__")
    kNN = float(capsys.readouterr().out.splitlines()[-1].split()[1])
    assert kNN > 25  # of eight classes
