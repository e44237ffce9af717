"""An hour of training beside what the process holds: memory, open files, threads. The figure is docs/soak.png."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.held import Held, held
from crlf.runs.files import write_bytes
from crlf.runs.run import Run
from crlf.visualization.figures import png
from crlf.visualization.figures.style import PALETTE, styled

FIGURE = Path(__file__).parent.parent / "docs" / "soak.png"
PROGRAM = "import sys; from crlf.cli import main; sys.exit(main())"
EVERY = 5.0  # seconds between two looks
SETTLED = 600.0  # seconds after which memory is to be flat: the first epochs fill pools and caches


def measure(minutes: float = 62) -> list[dict[str, Any]]:
    """A row for each tenth of the run."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["pretrain", "--minutes", str(minutes), "--out", f"{folder}/run", "--device", "cpu"]
        with subprocess.Popen([sys.executable, "-c", PROGRAM, *words]) as process:
            looks = list(watched(process))
        if process.returncode:
            raise RuntimeError(f"the training ended with code {process.returncode}")
        steps = Run(f"{folder}/run").log()[-1]["step"]
    draw(looks, FIGURE)
    a_tenth = looks[:: max(1, len(looks) // 10)]
    rows = [
        {"minute": seconds / 60, "memory_MB": now.memory / 1e6, "open_files": now.files, "threads": now.threads}
        for seconds, now in a_tenth
    ]
    grown = trend([(s, now.memory) for s, now in looks if s >= min(SETTLED, looks[-1][0] / 2)])
    return [*rows, {"minute": f"trend, of {steps:,} steps", "memory_MB": f"{3600 * grown / 1e6:+.1f} an hour"}]


def watched(process: subprocess.Popen[bytes]) -> Iterator[tuple[float, Held]]:
    """(seconds, what the process holds) every few seconds until it ends."""
    start = time.monotonic()
    while process.poll() is None:
        time.sleep(EVERY)
        if process.poll() is None:
            yield time.monotonic() - start, held(process.pid)


def trend(points: list[tuple[float, float]]) -> float:
    """The slope of the line of least squares."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


@styled()
def draw(looks: list[tuple[float, Held]], path: Path) -> None:
    """Memory (MB), and open files with threads, against minutes."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    minutes = [seconds / 60 for seconds, _ in looks]
    axes[0].plot(minutes, [now.memory / 1e6 for _, now in looks], color=PALETTE[0])
    axes[0].set_ylabel("resident memory (MB)")
    for colour, name in zip(PALETTE, ("files", "threads"), strict=False):
        label = "open files" if name == "files" else name
        axes[1].plot(minutes, [getattr(now, name) for _, now in looks], color=colour, label=label)
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        axis.set_xlabel("minutes")
        axis.grid(alpha=0.3)
    figure.suptitle(f"What a training of {minutes[-1]:.0f} minutes holds")
    write_bytes(path, png(figure))
