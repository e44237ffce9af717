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
if sys.argv[1] == "function":
    run = crlf.pretrain(crlf.Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1), out=sys.argv[2])
    crlf.embed(run)
    assert asked == []
else:
    assert main(["pretrain", *tiny, "--out", sys.argv[2]]) == 0
    assert len(asked) == 2
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
@pytest.mark.parametrize("how", ["function", "command"])
def test_only_a_command_changes_the_allocator(how: str, tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
