"""Maps of the embeddings (PCA and t-SNE), with the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from scipy.spatial.distance import cdist

from crlf.runs.run import Run
from crlf.text import percent
from crlf.visualization.figures.projections import maps, perplexity_of, principal, sample
from crlf.visualization.figures.run_arrays import NotDrawn, embedded, short
from crlf.visualization.figures.style import INK, PALETTE, look, narrow, points, sheet, styled, tag

BY_LEGEND = "Colour and shape tell the class."
NAMED = 16  # largest number of classes whose names fit into a scatter plot


@styled()
def pca_embedding(run: Run) -> Figure:
    """The test embeddings along their two directions of greatest variance."""
    split, embeddings, labels, names = embedded(run, least=2)
    N = len(embeddings)
    pca, plane = principal(embeddings, 2)
    shares = [*np.nan_to_num(pca.explained_variance_ratio_), 0.0][:2]
    title = f"PCA of {N:,} {split} embeddings: 2 components hold {percent(sum(shares))} of the variance"
    rows = sample(N)
    groups, names, how = grouped(run, rows, labels, names)
    figure = sheet((8, 6.6), title, f"{origin(len(rows), N, split)}. {how} {tag(run.settings)}")
    axes = figure.subplots()
    axes.set(xlabel=f"first component, {percent(shares[0])} of the variance")
    axes.set(ylabel=f"second component, {percent(shares[1])} of the variance")
    scatter(axes, plane[rows], groups, names)
    return figure


@styled()
def tsne_embedding(run: Run) -> Figure:
    """The test embeddings, or 5,000 of them drawn at random, in a plane that keeps neighbours (t-SNE)."""
    split, embeddings, labels, names = embedded(run, least=3)
    N, D = embeddings.shape
    made = maps(run)
    if "tsne" not in made:
        raise NotDrawn(f"all {N} embeddings point the same way: they have no neighbours to keep")
    rows, plane, perplexity = made["rows"], made["tsne"], perplexity_of(len(made["rows"]))
    knn = run.scores.get("knn_accuracy")
    judged = f": kNN in all {D:,} dimensions is {percent(knn)} right" if knn else ""
    how = f"cosine, perplexity {perplexity:.3g}. Neighbours lie together; sizes and distances of groups mean little"
    groups, names, colours = grouped(run, rows, labels, names)
    caption = f"{origin(len(rows), N, split)}; {how}. {colours} {tag(run.settings)}"
    figure = sheet((8, 6.6), f"t-SNE of {len(rows):,} {split} embeddings{judged}", caption)
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    scatter(axes, plane, groups, names)
    return figure


def origin(shown: int, N: int, split: str) -> str:
    return f"A point is a {split} image" + (f", {shown:,} of {N:,} drawn at random" if shown < N else "")


def grouped(
    run: Run, rows: np.ndarray, labels: np.ndarray | None, names: list[str]
) -> tuple[np.ndarray | None, list[str], str]:
    """The group of each of these rows, the names of the groups, and their kind: classes, or clusters without labels."""
    if labels is not None:
        few = len(names) <= NAMED
        return labels[rows], names, "A name stands where its class is densest." if few else BY_LEGEND
    clusters = maps(run)["cluster"].astype(np.int64)
    K = 1 + int(clusters.max())
    if K == 1:
        return None, [], "These images have no labels."
    told = f"These images have no labels: names and colours are those of {K} clusters (k-means)."
    return clusters, [f"cluster {k + 1}" for k in range(K)], told


def scatter(axes: Axes, places: np.ndarray, labels: np.ndarray | None, names: list[str]) -> None:
    """Draw points (n, 2) in the colour and marker of their class or cluster, with its name where it is densest."""
    axes.set_aspect("equal", adjustable="datalim")
    size = float(np.clip(40_000 / len(places), 8, 30)) * (0.3 if narrow() else 1)
    if labels is None:
        axes.scatter(places[:, 0], places[:, 1], s=size, color=PALETTE[0], alpha=0.6, lw=0)
        return
    for part in np.array_split(
        np.arange(len(places)), min(20, len(places))
    ):  # mixed, so that no class covers the others
        for k in np.unique(labels[part]):
            x, y = places[part[labels[part] == k]].T
            axes.scatter(x, y, s=size, color=look(k)[0], marker=look(k)[1], alpha=0.8, lw=0)
    if not (narrow() and len(names) <= NAMED):
        legend(axes, names)
    if len(names) <= NAMED:
        name_classes(axes, [(k, short(names[k], 16), densest(places[labels == k])) for k in np.unique(labels)])


def densest(points: np.ndarray) -> np.ndarray:
    """The point, of points (n, 2), whose nearest eighth of the points is closest: (2,).

    Unlike the median, it cannot lie between two clusters.
    """
    few = points[:1000]
    k = min(len(few) - 1, max(1, len(few) // 8))
    return few[np.partition(cdist(few, few), k, axis=1)[:, k].argmin()]


def legend(axes: Axes, names: list[str], most: int = 76) -> None:
    """Draw the legend of the classes in their order, right of the axes; of more than 76, the rest is only counted."""
    keys = []
    for k, name in enumerate(names[:most]):
        colour, marker = look(k)
        keys.append(Line2D([], [], ls="", marker=marker, color=colour, ms=7, mew=0, label=name))
    if len(names) > most:
        keys.append(Line2D([], [], ls="", label=f"and {len(names) - most:,} more"))
    small = len(names) > 24
    axes.legend(
        handles=keys,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        ncols=1 + (len(names) > 38),
        fontsize=points(6.5 if small else 9.5),
        labelspacing=0.35 if small else 0.6,
        handletextpad=0.2,
        columnspacing=0.8,
    )


def name_classes(axes: Axes, classes: Sequence[tuple[int, str, np.ndarray]]) -> None:
    """Draw a mark at a point (2,) of each class, and the name of the class at the nearest free place."""
    assert isinstance(axes.figure, Figure)
    axes.figure.draw_without_rendering()  # the layout determines the position of the axes
    axes.set_aspect("auto")  # it stays equal, since the limits and the frame are fixed
    axes.autoscale(False)
    dots = [axes.transData.transform(place) for _, _, place in classes]
    taken = [Bbox.from_bounds(x - 10, y - 10, 20, 20) for x, y in dots]
    frame = axes.get_window_extent().padded(-8)
    for (k, name, place), dot in zip(classes, dots, strict=True):
        colour, marker = look(k)
        axes.plot(*place, marker=marker, color=colour, ms=9, mec="white", mew=1.4, zorder=3)
        text = axes.text(
            place[0],
            place[1],
            name,
            size=7.0 if narrow() else points(10.5),
            weight="bold",
            ha="center",
            va="center",
            zorder=4,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        box = free_place(text.get_window_extent().padded(2), dot, taken, frame)
        taken.append(box)
        centre = axes.transData.inverted().transform((box.x0 + box.width / 2, box.y0 + box.height / 2))
        text.set_position(tuple(centre))
        axes.plot(*np.stack([place, centre]).T, color=INK, lw=0.7, zorder=2.5)


def free_place(box: Bbox, dot: np.ndarray, taken: list[Bbox], frame: Bbox) -> Bbox:
    """Move a box to the free place that is nearest to its dot; all in pixels."""
    for gap in range(12, 600, 12):
        for angle in np.pi / 2 + np.arange(16) * np.pi / 8:
            x = dot[0] + np.cos(angle) * (box.width / 2 + gap) - box.width / 2
            y = dot[1] + np.sin(angle) * (box.height / 2 + gap) - box.height / 2
            moved = Bbox.from_bounds(x, y, box.width, box.height)
            inside = frame.x0 < moved.x0 and moved.x1 < frame.x1 and frame.y0 < moved.y0 and moved.y1 < frame.y1
            if inside and not moved.count_overlaps(taken):
                return moved
    return box
