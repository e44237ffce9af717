"""A thousand short runs in one process, trained, embedded and probed: what they leave in memory and on the disk."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import crlf
from bench.held import held

RECIPE = crlf.Recipe(data="shapes", subset=32, batch_size=16, views=2, epochs=1)
RUNS = 1000


def measure(count: int = RUNS) -> list[dict[str, Any]]:
    """A row at the tenth run, and after each quarter of them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place, temporary = Path(folder) / "runs", Path(folder) / "tmp"
        place.mkdir()
        temporary.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(temporary)
        try:
            for number in range(1, count + 1):
                once(place)
                if number == min(10, count) or number % max(1, count // 4) == 0:
                    now = held()
                    left = sum(len(files) for _, _, files in os.walk(temporary))
                    rows.append(
                        {
                            "runs": number,
                            "memory_MB": now.memory / 1e6,
                            "open_files": now.files,
                            "threads": now.threads,
                            "files_in_tmp": left,
                            "files_of_a_run": len(list((place / "run").iterdir())),
                        }
                    )
        finally:
            tempfile.tempdir = before
    return rows


def once(place: Path) -> None:
    """A run that takes the place of the one before."""
    with contextlib.redirect_stderr(io.StringIO()):
        run = crlf.pretrain(RECIPE, out=place / "run", device="cpu", overwrite=True)
        crlf.embed(run, device="cpu")
        crlf.probe(run, device="cpu")
