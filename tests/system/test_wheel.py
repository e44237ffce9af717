"""What is built installs and works: the wheel, made of the source distribution alone, in an environment of its own."""

from __future__ import annotations

import email
import runpy
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from environments import lent, said
from planted import copy_of_the_checkout
from terminal import ROOT

pytestmark = pytest.mark.system
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"


def built(kind: str, source: Path, folder: Path) -> Path:
    """A "sdist" or a "wheel", as pip has setuptools build it, but with the setuptools that is here."""
    return folder / said([sys.executable, "-c", BUILD, kind, str(folder)], source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    with tarfile.open(built("sdist", copy_of_the_checkout(folder), folder)) as archive:
        archive.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    return built("wheel", source, folder)


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`crlf`, installed from the wheel in an environment that is empty but for the libraries that are lent to it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    python = lent(folder)
    said([str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], folder)
    return folder / "bin" / "crlf"


def test_it_holds_the_package_and_nothing_else(wheel: Path):
    """Every file of the package that git knows or would take, and none of the tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "crlf").rglob("*") if path.is_file()}
    assert names == {name for name in ours if "__pycache__" not in name}
    assert "crlf/py.typed" in names and any(name.endswith(".html") for name in names)


def test_its_description_is_the_readme(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(archive.read(name))
    assert told["Author"] == "the CRLF maintainers" and told["License-Expression"] == "MIT"
    assert told["Description-Content-Type"] == "text/markdown"
    setup = runpy.run_path(str(ROOT / "setup.py"))
    readme = setup["absolute"]((ROOT / "README.md").read_text(encoding="utf-8"), setup["repository"]())
    text = told.get_payload(decode=True)
    assert isinstance(text, bytes) and text.decode().strip() == readme.strip()


def test_it_runs_from_anywhere(program: Path, tmp_path: Path, keep: Callable[[str, list[dict[str, Any]]], None]):
    where = said([str(program.with_name("python")), "-c", "import crlf; print(crlf.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(program.parent.parent), "it is this checkout that was imported"
    words = ["--data", "shapes", "--epochs", "1"]
    said([str(program), "run", *words, "--out", "run"], tmp_path, limit=1800)
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made >= {
        "encoder_simclr.pth",
        "train_emb.npy",
        "scores.json",
        "loss_curve.png",
        "report.html",
        "recipe.json",
    }
    assert "<style>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    version = said([str(program), "--version"], tmp_path).strip()
    keep("wheel", [{"installed": version, "ran": f"crlf run {' '.join(words)}"}])
