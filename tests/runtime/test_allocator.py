"""Who changes the allocator: the commands, and no function that a program calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, types
import crlf.runtime.allocator as allocator
asked = []
class Library:
    @staticmethod
    def mallopt(*words):
        asked.append(words)
        return 1
allocator.ctypes = types.SimpleNamespace(CDLL=lambda name: Library)
import crlf
from crlf.cli import main
tiny = ["--data", "shapes", "--subset", "64", "--batch-size", "32", "--views", "2", "--epochs", "1", "--device", "cpu"]
run = crlf.pretrain(crlf.Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1), out=sys.argv[1])
crlf.embed(run)
assert asked == [], "a function"
assert main(["pretrain", *tiny, "--out", sys.argv[2]]) == 0
assert len(asked) == 2, "a command"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
@pytest.mark.long
def test_only_a_command_changes_the_allocator(tmp_path: Path):
    folders = [str(tmp_path / name) for name in ("function", "command")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
