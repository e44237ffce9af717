"""The page "Add a method" followed to the letter, in a copy of the code: its blocks are written there, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_methods

from crlf.runs.run import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
FILE, LINE, TEST, COMMAND = re.findall(r"```\w*\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 3: a copy of the code with the file, its line and its test."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("crlf", "bench", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "simclr_train.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "crlf/methods/alignment.py").write_text(FILE)
    (folder / "tests/methods/test_alignment.py").write_text(TEST)
    table = folder / "crlf/methods/__init__.py"
    head, inspect, rest = table.read_text().partition("import inspect\n\n")
    table.write_text(head + inspect + LINE + rest)
    return folder


def ran(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_under_80_lines():
    lines = [line for block in (FILE, LINE, TEST) for line in block.splitlines() if line.strip()]
    assert len(lines) < 80 and len(LINE.splitlines()) == 1


@pytest.mark.long
def test_its_own_test_and_the_contract_pass(followed: Path):
    files = [f"tests/methods/test_{name}.py" for name in ("methods", "method_learning", "alignment")]
    options = ["-rN", "-k", "alignment", "-o", "addopts=--disable-plugin-autoload -p hypothesispytest"]
    passed = re.search(r"(\d+) passed", ran(followed, "-m", "pytest", *options, *files))
    assert passed and int(passed[1]) > 15


def test_without_its_test_one_test_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_methods, "HERE", tmp_path)
    with pytest.raises(AssertionError, match=r"test_alignment\.py must say why its loss is right"):
        test_methods.test_its_loss_has_a_reference("alignment")


@pytest.mark.long
def test_its_row_is_written_into_the_docs(followed: Path):
    ran(followed, "-m", "bench", "readme")
    assert "| `alignment` | Alignment and uniformity |" in (followed / "docs/methods.md").read_text()


@pytest.mark.long
def test_its_command_starts_it(followed: Path):
    program, *flags = COMMAND.split()[1:]
    few = ["--data", "shapes", "--subset", "64", "--batch-size", "32", "--views", "2", "--epochs", "1"]
    ran(followed, program, *flags, *few, "--device", "cpu", "--out", "run")
    run = Run(followed / "run")
    assert run.settings["method"] == "alignment" and run.settings["head"]["uniformity"] == 0.5
    assert {"alignment", "uniformity"} <= set(run.log()[-1])
    assert "Alignment and uniformity on shapes" in run.file("report.html").read_text()
