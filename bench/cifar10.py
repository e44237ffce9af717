"""The one command from start to end: `python simclr_train.py` in a process and a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent.parent / "simclr_train.py"
KEPT = (
    "seed", "epochs", "views_seen", "pflop", "linear_accuracy", "knn_accuracy", "chance", "train_seconds",
    "images_per_second", "device",
)  # fmt: skip


def measure(*flags: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, str(PROGRAM), "--out", folder, "--device", "cpu", *flags]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        scores = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))
    return [{"flags": " ".join(flags) or "none"} | {name: scores[name] for name in KEPT} | {"whole_seconds": seconds}]
