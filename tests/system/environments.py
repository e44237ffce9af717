"""Environments of their own, for what is installed in them alone."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

OFFLINE = """
import socket

def refuse(self, address):
    raise OSError(f"this process has no network, not even {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
"""


def said(command: list[str], cwd: Path, *, limit: float = 900, **environment: str) -> str:
    """What a command that ends well writes on stdout, without this checkout on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def lent(folder: Path) -> Path:
    """The python of a new environment. The libraries of CRLF are gigabytes: those that are here are lent to it."""
    venv.create(folder, with_pip=True)
    here = dict.fromkeys(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    (packages(folder) / "lent.pth").write_text("\n".join(here) + "\n")  # behind its own: what it has itself comes first
    return folder / "bin" / "python"


def packages(folder: Path) -> Path:
    [found] = folder.glob("lib/python*/site-packages")
    return found


def cut_off(folder: Path) -> None:
    """Let no program of this environment reach a network."""
    (packages(folder) / "sitecustomize.py").write_text(OFFLINE)
