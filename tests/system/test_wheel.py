"""What is built installs and works: the wheel, made of the source distribution alone, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted import copy_of_the_checkout
from terminal import ROOT

pytestmark = pytest.mark.system
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"
TINY = ["--epochs", "1", "--subset", "128", "--batch-size", "64", "--device", "cpu"]


def said(command: list[str], cwd: Path, **environment: str) -> str:
    """What a command that ends well writes on stdout, without this checkout on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    """`crlf` in an empty environment. The libraries that it needs are gigabytes: those that are here are lent to it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    said([str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], folder)
    [packages] = folder.glob("lib/python*/site-packages")
    lent = dict.fromkeys(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    (packages / "lent.pth").write_text("\n".join(lent) + "\n")  # behind its own: what it has itself comes first
    return folder / "bin" / "crlf"


def test_it_holds_the_package_and_nothing_else(wheel: Path):
    """Every file of the package that git knows or would take, and none of the tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "crlf").rglob("*") if path.is_file()}
    assert names == {name for name in ours if "__pycache__" not in name}


def test_a_run_from_end_to_end(program: Path, tmp_path: Path, keep: Callable[[str, list[dict[str, Any]]], None]):
    where = said([str(program.with_name("python")), "-c", "import crlf; print(crlf.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(program.parent.parent), "it is this checkout that was imported"
    said([str(program), "pretrain", "shapes", *TINY, "--out", "run"], tmp_path)
    for stage in ("embed", "probe", "draw", "report"):
        said([str(program), stage, "run"], tmp_path)
    assert (tmp_path / "run" / "encoder_simclr.pth").is_file() and (tmp_path / "run" / "report.html").is_file()
    assert "<style>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    version = said([str(program), "--version"], tmp_path).strip()
    shutil.rmtree(tmp_path / "run")
    keep("wheel", [{"installed": version, "ran": "pretrain, embed, probe, draw, report"}])
