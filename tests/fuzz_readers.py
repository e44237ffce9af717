"""Fuzz what reads files from elsewhere, guided by coverage (atheris, which is libFuzzer for Python).

    python tests/fuzz_readers.py all -runs=100000      # or the name of one of READERS; more options: -help=1

The first byte of an input says which reader gets the rest. Ends with 0, or with a traceback and the input in a file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLACE = "CRLF_FUZZ_PLACE"  # of the process that fuzzes: libFuzzer ends it without any clearing up


def fuzz(name: str, options: list[str], place: Path) -> None:
    import atheris

    with atheris.instrument_imports(
        include=["crlf.data", "crlf.runs.run", "crlf.runs.files", "tarfile", "json", "numpy.lib"]
    ):
        from readers import READERS

    chosen = [READERS[name]] if name != "all" else list(READERS.values())
    seeds, folder = place / "seeds", place / "files"
    for path in (seeds, folder):
        path.mkdir()
    for number, (_, samples) in enumerate(chosen):
        for count, sample in enumerate(samples()):
            (seeds / f"{number}-{count}").write_bytes(bytes([number]) + sample)

    def one(data: bytes) -> None:
        if data:
            chosen[data[0] % len(chosen)][0](data[1:], folder)

    atheris.Setup([sys.argv[0], *options, "-timeout=20", "-rss_limit_mb=4000", str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if PLACE in os.environ:
        fuzz(sys.argv[1], sys.argv[2:], Path(os.environ[PLACE]))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | {PLACE: made}).returncode)
