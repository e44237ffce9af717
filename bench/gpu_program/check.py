"""The tests that need a GPU, and run nowhere else: those whose names say `on_a_gpu`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.gpu_program.context import Context

ROOT = Path(__file__).parent.parent.parent
TESTS = ("tests/training/test_compile.py", "tests/runtime/test_device_path.py")
WORDS = 600  # of a failed test's report that are kept


def measure(c: Context) -> None:
    """A row for each test, with the end of its report where it failed."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider"]
    command += ["-p", "no:logging", "-rA", "--tb=short", "-k", "on_a_gpu", *TESTS]
    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=c.clock.left()
    )
    print(found.stdout, found.stderr)  # to the log
    for row in read(found.stdout):
        c.emit(row)


def read(text: str) -> list[dict[str, str]]:
    """pytest's output -> a row for each test that ran: how it ended, and the last lines of what it said."""
    bare = re.sub(r"^={3,} .* ={3,}$", "", text.partition(" short test summary")[0], flags=re.M).rstrip("=")
    reports = re.split(r"\n_{3,} (?:ERROR at \w+ of )?(\S+) _{3,}\n", bare)
    said = dict(zip(reports[1::2], reports[2::2], strict=True))
    rows = []
    for state, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+)", text, flags=re.M):
        test = name.rpartition("::")[2]
        error = {"error": said.get(test, "")[-WORDS:].strip()} if state in ("FAILED", "ERROR") else {}
        rows.append({"test": test, "ended": state.lower(), **error})
    return rows
