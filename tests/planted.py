"""Planted errors: each changes a line or two of crlf, and the tests that are named beside it must notice.

    python tests/planted.py            # all, long tests too: hours; exit code 1 if less than 95 % are caught
    python tests/planted.py probes     # those whose names begin so

The table is planted.txt. An error is planted in a copy of the checkout, never in the checkout itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_name("planted.txt")
ENOUGH = 0.95
LIMIT = 1800  # seconds of a run of pytest: all tests that are named take minutes
PASSED, FAILED = 0, 1  # exit codes of pytest; any other says that the tests did not run


@dataclass(frozen=True)
class Planted:
    """An error, and the tests that notice it."""

    name: str
    file: str
    """From the root of the checkout."""
    old: str
    new: str
    tests: tuple[str, ...]
    """As pytest names them: FILE or FILE::FUNCTION, from the folder of the tests."""

    def plant(self, text: str) -> str:
        """The text of the file with the error in it."""
        found = text.count(self.old)
        if found != 1:
            raise LookupError(f"planted error {self.name!r}: its text is in {self.file} {found} times, not once")
        return text.replace(self.old, self.new)


def read(text: str) -> list[Planted]:
    """Blocks of lines with a blank line between: a name, a file, what goes (-), what comes (+), and the tests.

    Lines that begin with # are headings.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [entry(block.splitlines()) for block in "\n".join(lines).strip().split("\n\n") if block.strip()]


def entry(lines: Sequence[str]) -> Planted:
    name, file, *rest = (line for line in lines if line)
    old, new = (("\n".join(line[2:] for line in rest if line.startswith(sign))) for sign in "-+")
    return Planted(name, file, old, new, tuple(line for line in rest if line[0] not in "-+"))


def copy_of_the_checkout(folder: Path) -> Path:
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "simclr_output", "build")
    return Path(shutil.copytree(ROOT, folder / "checkout", ignore=left_out))


def run(checkout: Path, tests: Iterable[str], expected: Sequence[int] = (PASSED, FAILED)) -> int | None:
    """The exit code of pytest in the copy, and what it said if that is none of these; None if it took too long."""
    names = [f"tests/{test}" for test in tests]
    # Without bytecode: a file that changes within a second and keeps its size would not be compiled again.
    ours = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    options = ["-x", "-q", "-n", "0", "-m", "not system", "-p", "no:cacheprovider"]  # long tests too, in one process
    command = [sys.executable, "-m", "pytest", *options, *names]
    try:
        done = subprocess.run(command, cwd=checkout, env=os.environ | ours, capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in expected:
        print(done.stdout.decode(errors="replace")[-2000:])
    return done.returncode


def verdict(error: Planted, checkout: Path) -> str:
    """caught, SURVIVED, or what kept it from being tried."""
    path = checkout / error.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(error.plant(sound), encoding="utf-8")
    try:
        code = run(checkout, error.tests)
    finally:
        path.write_text(sound, encoding="utf-8")
    return {PASSED: "SURVIVED", FAILED: "caught", None: "HANGS"}.get(code, f"NOT TRIED: pytest ended with {code}")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python tests/planted.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="how the names of some errors of planted.txt begin; none: all")
    wanted = parser.parse_args(words).names
    table = read(TABLE.read_text(encoding="utf-8"))
    chosen = [error for error in table if not wanted or error.name.startswith(tuple(wanted))]
    if not chosen:
        parser.error(f"no planted error has a name that begins with {' or '.join(wanted)!r}")
    for error in chosen:  # before anything is tried
        error.plant((ROOT / error.file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        checkout = copy_of_the_checkout(Path(folder))
        if run(checkout, dict.fromkeys(test for error in chosen for test in error.tests), [PASSED]) != PASSED:
            print("the tests fail without any error planted: nothing can be said", file=sys.stderr)
            return 2
        found = {}
        for error in chosen:
            found[error.name] = verdict(error, checkout)
            print(f"{found[error.name]:<9} {error.name}", flush=True)
    caught = list(found.values()).count("caught")
    print(f"{caught} of {len(found)} caught ({100 * caught / max(1, len(found)):.0f} %)")
    return int(caught < ENOUGH * len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
