"""The one command from start to end: `python simclr_train.py`, three seeds, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crlf
from crlf.data import cache_dir

PROGRAM = Path(__file__).parent.parent / "simclr_train.py"
KEPT = (
    "seed", "epochs", "views_seen", "pflop", "linear_accuracy", "knn_accuracy", "chance", "train_seconds",
    "first_step_seconds", "images_per_second", "device", "precision", "protocol",
    *(f"{what}_{which}_accuracy" for what in ("plain", "untrained", "pixels") for which in ("linear", "knn")),
)  # fmt: skip


def kept() -> Path:
    """Where the run of seed 0 stays, for `python -m bench pictures`."""
    return cache_dir() / "bench" / "cifar10"


def measure(*flags: str, seeds: Sequence[int] = (0, 1, 2), device: str = "cpu") -> list[dict[str, Any]]:
    """A row for each seed."""
    return [whole(flags, seed, device) for seed in seeds]


def whole(flags: Sequence[str], seed: int, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept() if not flags and seed == 0 else Path(temporary)
        start = time.perf_counter()
        options = ["--out", str(folder), "--overwrite", "--device", device, "--seed", str(seed), *flags]
        subprocess.run([sys.executable, str(PROGRAM), *options], check=True)
        seconds = time.perf_counter() - start
        crlf.probe(folder, probes="plain", device=device)
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return (
        {"flags": " ".join(flags) or "none"}
        | {name: scores[name] for name in KEPT if name in scores}
        | {"whole_seconds": seconds}
    )
