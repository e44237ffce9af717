"""What the linear probe predicted for each class."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crlf.runs.run import Run
from crlf.text import percent
from crlf.visualization.figures.run_arrays import NotDrawn, class_indices, class_names
from crlf.visualization.figures.style import INK, RIGHT, WRONG, narrow, points, sheet, styled, tag


@styled()
def confusion_matrix(run: Run) -> Figure:
    """What the linear probe predicted for each class: counts, and the share of each class that it got right."""
    if run.unlabelled:
        raise NotDrawn("the data set has no labels")
    names = class_names(run)
    labels = class_indices(run, "test_lbl.npy", names)
    predicted = class_indices(run, "test_pred.npy", names, rows=len(labels))
    K, total = len(names), len(labels)
    counts = np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K)
    chance = run.scores.get("chance") or counts.sum(1).max() / total
    right = percent(counts.trace() / total)
    title = f"Linear probe: {right} of {total:,} test images right (chance {percent(chance)})"
    if run.cross_validated:
        title = f"Linear probe, cross-validated: {right} of all {total:,} images right (chance {percent(chance)})"
    which = "all" if run.cross_validated else "test"
    caption = f"Numbers of {which} images. Rows: true classes; columns: predictions. Blue: right; orange: wrong. "
    wide, high = float(np.clip(0.82 * K, 5, 8.2)), float(np.clip(0.52 * K, 3, 7))  # inches
    figure = sheet((wide + 2, high + 1.5), title, caption + tag(run.settings))
    left, bars = figure.subplots(1, 2, width_ratios=[wide, 1.1], sharey=True)
    counts_table(left, counts, names)
    lie_down(left, cell=figure.bbox.width * wide / (wide + 2) / K)
    accuracy_bars(bars, counts)
    return figure


def counts_table(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    K = len(names)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    same = np.eye(K, dtype=bool)
    worst = max(share[~same].max(initial=0), 1e-9)
    colours = np.where(same[..., None], RIGHT(share), WRONG(share / worst * (~same)))
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    size = 6.0 if narrow() else points(10.5 if K <= 12 else 7)
    for i, j in np.ndindex(K, K) if K <= 20 else ():
        colour = "white" if i == j and share[i, j] > 0.54 else INK
        axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", size=size, color=colour)
    size, step = points(9 if K <= 20 else max(5.0, 9 - K / 20)), -(-K // 100)
    places, shown = range(0, K, step), names[::step]
    axes.set_xticks(places, shown, size=size)
    axes.set_yticks(places, shown, size=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def lie_down(axes: Axes, cell: float) -> None:
    """Rotate the names under the columns if one is wider than a column, `cell` pixels."""
    if max(label.get_window_extent().width for label in axes.get_xticklabels()) > cell - 6:
        axes.tick_params(axis="x", rotation=90)


def accuracy_bars(axes: Axes, counts: np.ndarray) -> None:
    """Bars of the share of each row that is on the diagonal; a class without test images has no bar."""
    K, sums = len(counts), counts.sum(1)
    share = counts.diagonal() / np.maximum(1, sums)
    axes.barh(np.arange(K), share, height=0.72, color="#b9c0f2")
    for i in range(K) if K <= 40 else ():
        text = percent(share[i]) if sums[i] else "–"
        axes.text(0.04, i, text, va="center", size=6.0 if narrow() else points(10 if K <= 20 else 6))
    axes.set(xlim=(0, 1))
    axes.set_xticks([0.35], ["accuracy"], size=points(9))
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)
