"""The curves of the record and of the long run, and the search, from their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crlf.runs.files import write_bytes
from crlf.visualization.figures import png
from crlf.visualization.figures.style import PALETTE, styled

NAME = "gpu-{}.png"


def rows_of(records: Path, part: str, table: str) -> list[dict[str, Any]]:
    """The rows of one table of a part, of all its records, each with the record's place among them."""
    lines = map(json.loads, records.read_text(encoding="utf-8").splitlines()) if records.exists() else []
    found = [record for record in lines if record["bench"] == f"gpu-program {part}"]
    return [
        {**row, "record": i, "device": record["device"], "command": record["command"]}
        for i, record in enumerate(found)
        for row in record["rows"]
        if row.get("table", "") == table
    ]


@styled()
def draw(records: Path, folder: Path) -> list[Path]:
    """A figure for each part that has curves."""
    drawn = []
    for name, paint in (("record", record), ("search", search)):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        if paint(records, figure.subplots()):
            write_bytes(folder / NAME.format(name), png(figure))
            drawn.append(folder / NAME.format(name))
    return drawn


def record(records: Path, axis: Axes) -> bool:
    """kNN among training images against seconds of training, a line for each run."""
    rows, results = rows_of(records, "record", "curve"), rows_of(records, "record", "result")
    for colour, run in zip(PALETTE, dict.fromkeys((row["record"], row["seed"]) for row in rows), strict=False):
        points = [(row["train_seconds"], row["knn_train_%"]) for row in rows if (row["record"], row["seed"]) == run]
        about = next(row for row in rows if (row["record"], row["seed"]) == run)
        ends = [row for row in results if (row["record"], row["seed"]) == run and "epochs" in row]
        end = f"{ends[0]['knn_%']:.1f} % of the test images" if ends else "stopped before its end"
        label = f"{about['device'].split()[1]}, weight decay {weight_decay(about)}, seed {run[1]}: {end}"
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
    axis.axhline(90, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("kNN among training images (%)")
    axis.legend(frameon=False)
    axis.set_title("90 % kNN on CIFAR-10, one GPU")
    return bool(rows)


def weight_decay(row: dict[str, Any]) -> str:
    """Of a record's run. The first runs do not say: it is in their command, or 0."""
    _, given, rest = row["command"].partition("optim.weight_decay=")
    return f"{row['weight_decay']:g}" if "weight_decay" in row else rest.split()[0] if given else "0"


def search(records: Path, axis: Axes) -> bool:
    """kNN on held-out images against operations, a point for each short run."""
    rows = rows_of(records, "search", "cnn")
    axis.scatter([row["pflop"] for row in rows], [row["knn_%"] for row in rows], s=12, color=PALETTE[0], alpha=0.7)
    axis.set_xscale("log")
    axis.set_xlabel("PFLOP of training")
    axis.set_ylabel("kNN on held-out images (%)")
    axis.set_title("The light CNN: successive halving")
    return bool(rows)
