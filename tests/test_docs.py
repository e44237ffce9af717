"""The commands and programs of "Use the encoder", followed to the letter; the README's length and pictures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import crlf
from crlf import cli
from crlf.recipe import Recipe

DOCS = Path(__file__).parent.parent / "docs"


USE = (DOCS / "use-the-encoder.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def in_use(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was not embedded yet, and photographs."""
    folder = tmp_path_factory.mktemp("use")
    crlf.pretrain(Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1), out=folder / "run", device="cpu")
    (folder / "new photos").mkdir()
    images = crlf.data.load("shapes")[0].images.permute(0, 2, 3, 1).numpy()
    for i, name in enumerate(("one.jpg", "new photos/two.png", "query.jpg", "other.jpg")):
        Image.fromarray(images[i]).save(folder / name)
    return folder


def test_the_commands_of_use_the_encoder(in_use: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(in_use)
    commands = re.findall(r"^    crlf (embed|search) (.*?)(?:  +#.*)?$", USE, flags=re.MULTILINE)
    assert len(commands) == 5
    for name, words in commands:
        assert cli.main([name, *shlex.split(words), "--device", "cpu"]) == 0, words
    made = ["embeddings.parquet", "new photos_embeddings.npy", "new photos_embeddings.parquet", "one.parquet"]
    assert all((in_use / name).is_file() for name in ("near.png", *made[1:])) and (in_use / "run" / made[0]).is_file()


@pytest.mark.long
def test_the_programs_of_use_the_encoder(in_use: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pandas")
    monkeypatch.chdir(in_use)
    crlf.embed("run", device="cpu")
    blocks, names = re.findall(r"```python\n(.*?)```", USE, flags=re.DOTALL), {}
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert names["rows"].shape == (100, 1792) and list(names["table"]["id"])[:1] == ["train/00000"]


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900 and "not measured" not in text
    pictures = [DOCS.parent / name for name in re.findall(r'(?:\(|src(?:set)?=")(docs/[\w/-]+\.png)', text)]
    assert len(pictures) >= 8 and all(path.stat().st_size <= 300_000 for path in pictures)
