"""The Dockerfile, where no Docker is: its commands are run one by one in an environment of their own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from environments import lent, said
from planted import copy_of_the_checkout
from terminal import ROOT

pytestmark = pytest.mark.system
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def commands() -> list[str]:
    return re.findall(r"^RUN (.*)$", TEXT, flags=re.MULTILINE)


def test_its_last_command_is_that_of_the_readme():
    assert commands()[-1].replace(" --no-cache-dir", "") == "pip install -e ."
    assert "pip install -e ." in (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_commands_run_and_crlf_starts(tmp_path: Path):
    """What is copied is what .dockerignore leaves; torch is lent, so that pip has it already."""
    python = lent(tmp_path / "venv")
    checkout = copy_of_the_checkout(tmp_path)
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        assert line not in ("crlf", "README.md", "LICENSE", "pyproject.toml", "setup.py"), "the image needs it"
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands():
        said(["bash", "-c", command], checkout, PATH=path, TORCH_INDEX="")
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", TEXT, flags=re.MULTILINE)
    [rest] = re.findall(r"^CMD (.*)$", TEXT, flags=re.MULTILINE)
    [name, *words] = [*json.loads(entry), *json.loads(rest)]
    assert "usage: crlf COMMAND" in said([str(python.with_name(name)), *words], tmp_path)
