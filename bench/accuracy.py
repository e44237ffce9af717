"""Accuracy against time and against compute: the default recipe beside the original project's.

Each point is a whole run of its own length, one seed; the figure is docs/accuracy.png.
Both recipes train the light CNN; the last point of the default recipe is the mean over seeds of `cifar10`, when its
record is there.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

import crlf
from bench import cifar10
from crlf import runs
from crlf.figures import png
from crlf.figures.style import PALETTE, styled
from crlf.recipe import RECIPES

FIGURE = Path(__file__).parent.parent / "docs" / "accuracy.png"
RECORDS = Path(__file__).parent / "records.jsonl"
LENGTHS = {"default": (1, 2, 5), "seed": (1, 2, 5, 10)}  # epochs


def measure(lengths: Mapping[str, Sequence[int]] = LENGTHS, **settings: Any) -> list[dict[str, Any]]:
    rows = []
    for name, epochs in lengths.items():
        for count in epochs:
            recipe = dataclasses.replace(RECIPES[name], epochs=count, **settings)
            with tempfile.TemporaryDirectory() as folder:
                run = crlf.pretrain(recipe, out=folder, device="cpu")
                crlf.embed(run, device="cpu")
                scores = crlf.probe(run)
            rows.append({"recipe": name, **{key: scores[key] for key in cifar10.KEPT if key in scores}})
    draw(rows + last_point(RECORDS), FIGURE)
    return rows


def last_point(records: Path) -> list[dict[str, Any]]:
    """The mean of the last `cifar10` record's seeds, as one row."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    found = [record["rows"] for record in map(json.loads, lines) if record["bench"] == "cifar10"]
    if not found:
        return []
    mean = {name: statistics.mean(row[name] for row in found[-1]) for name in ("linear_accuracy", "train_seconds")}
    return [{"recipe": "default", "pflop": found[-1][0]["pflop"], **mean}]


@styled()
def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Linear accuracy (%) against minutes of training and against PFLOP, a line a recipe."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, scale, label in (
        (axes[0], "train_seconds", 60, "minutes of training"),
        (axes[1], "pflop", 1, "PFLOP of training"),
    ):
        for colour, recipe in zip(PALETTE, dict.fromkeys(row["recipe"] for row in rows), strict=False):
            points = sorted((row[key] / scale, 100 * row["linear_accuracy"]) for row in rows if row["recipe"] == recipe)
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=f"recipe {recipe!r}")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("linear accuracy (%), CIFAR-10 test")
    axes[0].legend(frameon=False)
    figure.suptitle("Accuracy against time and against compute, the light CNN on CIFAR-10")
    runs.write_bytes(path, png(figure))
