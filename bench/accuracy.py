"""Accuracy against time and against compute: the default recipe beside the original project's.

Each point is a whole run of its own length, one seed, of the light CNN; the figure is docs/accuracy.png.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

import crlf
from bench import cifar10
from crlf.recipe import RECIPES
from crlf.runs.files import write_bytes
from crlf.visualization.figures import png
from crlf.visualization.figures.style import PALETTE, styled

FIGURE = Path(__file__).parent.parent / "docs" / "accuracy.png"
LENGTHS = {"default": (1, 2, 5, 10), "seed": (1, 3, 10)}  # epochs


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
    draw(rows, FIGURE)
    return rows


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
    write_bytes(path, png(figure))
