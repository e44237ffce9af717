"""The lowest versions that pyproject.toml declares: installed together, they pass the chosen tests.

It installs gigabytes: `python -m pytest -o addopts= -m system tests/system/test_lowest.py`. Old libraries warn of
each other, so here a warning is no error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from declared import ROOT, lowest

pytestmark = pytest.mark.system
EXTRAS = "onnx,hub,tiff,heif"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "pandas", "polars", "torchmetrics", "pyyaml")
CHOSEN = (
    *("tests/methods", "tests/metrics", "tests/data", "tests/embedding", "tests/inference", "tests/exporters"),
    *("tests/visualization", "tests/test_augmentation.py", "tests/test_encoders.py", "tests/test_optim.py"),
    *("tests/test_recipe.py", "tests/test_cli.py"),
)
NOT_THESE = "not test_a_name_that_no_repository_can_have"  # what hubs of other versions say of a name


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the lowest versions have no wheels for Python 3.12 and later")
def test_the_chosen_tests_pass(tmp_path: Path):
    constraints = tmp_path / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in lowest().items()))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), "-e", f".[{EXTRAS}]", *TOOLS]
    subprocess.run(install, cwd=ROOT, check=True, timeout=3600)
    options = ["-q", "-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider"]
    chosen = ["-m", "not long and not system", "-k", NOT_THESE, *CHOSEN]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(python), "-m", "pytest", *options, *chosen], cwd=ROOT, env=env, timeout=3600)
    assert done.returncode == 0
