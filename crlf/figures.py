"""What a run looks like: one function a figure, each from the files of the run alone.

A figure is a matplotlib `Figure` without pyplot: no window, no global state. Its title carries the run's own numbers,
its caption says how to read it, and both together are the description that the PNG holds for whoever cannot see it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import textwrap
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crlf import runs
from crlf.errors import InputError
from crlf.runs import Run
from crlf.words import percent

# Ten colours whose nearest two are 0.13 apart in OKLab, also as seen without red or green cones (matplotlib's tab10:
# 0.01; petroff10: 0.06; Tol's muted: 0.05). Found by search among colours that stand out from white; a test holds it.
PALETTE = (
    *("#3d49c2", "#e77900", "#00b692", "#920c00", "#92cee7"),
    *("#6d316d", "#e7c249", "#1886aa", "#aa92ff", "#9e6155"),
)
MARKERS = "os^DvPX<>*"
INK, SOFT, GRID = "#1b1f24", "#57606a", "#d8dee4"
RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", "#b9c0f2", "#3d49c2", "#242c85"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fbd3a4", "#e77900"])
STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.titleweight": "bold",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$1"
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#8c959f",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}
LOSSES = {
    "simclr": "NT-Xent",
    "dcl": "DCL",
    "mocov2": "InfoNCE",
    "mocov3": "InfoNCE",
    "barlow": "Barlow Twins",
    "vicreg": "VICReg",
    "supcon": "SupCon",
}  # what a method's loss is called in its paper
SHOWN = 5000  # points in a scatter plot
NAMED = 16  # classes whose names fit into a scatter plot


class NotDrawn(InputError):
    """A figure whose inputs are not there (yet), or are too few."""


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style, whatever the user's own is; a letter that the font lacks becomes a box."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def draw(run: Run | str | Path) -> list[Path]:
    """Draw every figure of a run whose inputs are there: `<name>.png` in its folder.

    Returns:
        The files that were written. Why a figure is left out is said on stderr.

    Raises:
        InputError: an input is damaged.
    """
    run = Run.open(run)
    start = time.perf_counter()
    written = []
    for name, make in FIGURES.items():
        try:
            figure = make(run)
        except NotDrawn as reason:
            print(f"{name} is not drawn: {reason}", file=sys.stderr)
            continue
        written.append(run.file(f"{name}.png"))
        runs.write_bytes(written[-1], png(figure))
    run.update_scores(draw_seconds=time.perf_counter() - start)
    return written


def png(figure: Figure) -> bytes:
    """The figure as PNG; its title and caption are the text chunk `Description`."""
    title, caption = figure.get_suptitle(), " ".join(figure.get_supxlabel().split())
    text = {"Title": title, "Description": f"{title}. {caption}", "Software": None}
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", metadata=text)
    return buffer.getvalue()


# The figures


@styled()
def loss_curve(run: Run) -> Figure:
    """The loss over training: what was logged as a line, the mean of each epoch as a point."""
    means = np.atleast_1d(run.array(runs.LOSS)) if run.file(runs.LOSS).exists() else np.empty(0)
    rows = [row for row in run.log() if isinstance(row.get("loss"), float) and row.get("epoch")]
    if not rows and not means.size:
        raise NotDrawn(f"{str(run.file(runs.LOG))!r} holds no loss yet: `crlf pretrain` writes it")
    recipe = run.recipe
    done = float(max(len(means), *(row["epoch"] for row in rows[-1:]), 0))
    caption = "Logged values are means over the steps since the one before. " if rows else ""
    figure = sheet((8, 4.6), loss_title(recipe, rows, means, done), caption + tag(recipe))
    axes = figure.subplots()
    if rows:
        axes.plot([r["epoch"] for r in rows], [r["loss"] for r in rows], color=PALETTE[8], lw=1.3, label="logged")
    if means.size:
        middles, line = np.arange(len(means)) + 0.5, "o" if rows else "o-"
        axes.plot(middles, means, line, color=PALETTE[0], ms=5, label="mean of an epoch")
    for chance, formula in chance_loss(recipe):
        axes.axhline(chance, color=PALETTE[1], ls=(0, (4, 3)), lw=1.4, label=f"chance: {formula} = {chance:.2f}")
    axes.set(xlabel="epoch", ylabel="loss", xlim=(0, done))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", lw=0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=3, borderaxespad=0.2, columnspacing=1.6)
    return figure


def loss_title(recipe: dict[str, Any], rows: list[dict[str, Any]], means: np.ndarray, done: float) -> str:
    course = list(means) if len(means) > 1 or not rows else [row["loss"] for row in rows]
    name = LOSSES.get(str(recipe.get("method")), "")
    asked = recipe.get("epochs", done)
    epochs = f"{round(done, 1):g} of {asked:,} epochs" if done < asked else f"{done:,.0f} epoch{'s'[: done > 1]}"
    facts = [f"{rows[-1]['step'] / rows[-1]['epoch']:,.0f} steps each"] if rows else []
    if "temperature" in (recipe.get("head") or {}):
        facts.append(f"τ {recipe['head']['temperature']:g}")
    numbers = " → ".join(f"{value:.2f}" for value in dict.fromkeys((course[0], course[-1])))
    return f"Loss: {name + ' ' * bool(name)}{numbers} over {epochs}" + (f" ({', '.join(facts)})" if facts else "")


def chance_loss(recipe: dict[str, Any]) -> list[tuple[float, str]]:
    """NT-Xent when all similarities are equal: the positive is as likely as each of V (B - 1) negatives."""
    if recipe.get("method") != "simclr":
        return []
    terms = recipe["views"] * (recipe["batch_size"] - 1) + 1
    return [(float(np.log(terms)), f"ln {terms:,}")]


HEALTH = {
    "rankme": "RankMe",
    "alignment": "alignment (0 is best)",
    "uniformity": "uniformity (low is even)",
    "spread": "spread (0 is collapse)",
}  # measures of `crlf.health`, each in a panel of its own


@styled()
def health(run: Run) -> Figure:
    """Rank, alignment, uniformity and spread over training, and at its end the cosines and the singular values."""
    rows = [row for row in run.log() if isinstance(row.get("h_rankme"), float) and row.get("epoch")]
    if not rows:
        raise NotDrawn(f"{str(run.file(runs.LOG))!r} holds no health yet: `crlf pretrain` logs it after an epoch")
    caption = (
        "From two views each of some training images, no label; h is the embedding, z what the loss compares. Last two "
        "panels: cosines at the end, and singular values of h as shares of the first: a slow fall is a high rank. "
    )
    figure = sheet((8, 6.2), health_title(rows), caption + tag(run.recipe))
    panels = list(figure.subplots(2, 3).flat)
    for axes, (measure, label) in zip(panels, HEALTH.items(), strict=False):
        over_epochs(axes, rows, measure)
        axes.set(xlabel="epoch", ylabel=label)
    cosines(panels[4], rows[-1])
    decay(panels[5], rows)
    for axes in (axes for axes in panels if axes.get_legend_handles_labels()[0]):
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0.2, fontsize=8.5,
                    handlelength=1.2, handletextpad=0.5, columnspacing=1.0)  # fmt: skip
    return figure


def health_title(rows: list[dict[str, Any]]) -> str:
    place = "z" if isinstance(rows[-1].get("z_spread"), float) else "h"
    first, last = rows[0], rows[-1]
    ranks = " → ".join(dict.fromkeys(f"{row['h_rankme']:.0f}" for row in (first, last)))
    texts = {"alignment": ".2f", "uniformity": ".2f", "spread": ".2f"}
    numbers = ", ".join(
        f"{key} {last[f'{place}_{key}']:{form}}".replace("-", "−")
        for key, form in texts.items()
        if isinstance(last.get(f"{place}_{key}"), float)
    )
    return f"Health by epoch {last['epoch']:.3g}: RankMe {ranks}; {place}: {numbers or 'no numbers'}"


def over_epochs(axes: Axes, rows: list[dict[str, Any]], measure: str) -> None:
    """A line for h and one for z, where they were measured."""
    for place, colour, marker in zip("hz", PALETTE, MARKERS, strict=False):
        known = [(r["epoch"], r[f"{place}_{measure}"]) for r in rows if isinstance(r.get(f"{place}_{measure}"), float)]
        if known:
            axes.plot(*zip(*known, strict=True), f"{marker}-", color=colour, ms=3.5, lw=1.3, label=place)
    axes.set(xlim=(0, 1.03 * rows[-1]["epoch"]), **({"ylim": (0, 1.05)} if measure == "spread" else {}))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.ticklabel_format(style="plain", useOffset=False)  # a power above the axis would meet the legend
    axes.grid(axis="y", lw=0.6)


def cosines(axes: Axes, row: dict[str, Any]) -> None:
    """How the cosines of two views lie: of one image, and of two images."""
    kinds = {"one image": "positive_histogram", "two images": "negative_histogram"}
    for (name, key), colour in zip(kinds.items(), PALETTE[2:], strict=False):
        counts = np.asarray(row.get(key) or [0.0], dtype=float)
        share = counts / max(1.0, counts.sum())
        axes.stairs(share, np.linspace(-1, 1, len(share) + 1), fill=True, alpha=0.45, color=colour, label=name)
    axes.set(xlabel="cosine of two views", ylabel="share of pairs", xlim=(-1, 1))


def decay(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The singular values of h at the start and at the end, both axes logarithmic."""
    ends = {"first": rows[0], "last": rows[-1]} if len(rows) > 1 else {"last": rows[-1]}
    for (name, row), colour in zip(ends.items(), (PALETTE[8], PALETTE[0])[-len(ends) :], strict=True):
        values = [max(value or 0.0, 1e-6) for value in row.get("h_spectrum") or [1.0]]
        axes.plot(2.0 ** np.arange(len(values)), values, "o-", ms=3.5, lw=1.3, color=colour, label=name)
    axes.set(xlabel="rank", ylabel="singular value of h", xscale="log", yscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(axis="y", lw=0.6)


@styled()
def confusion_matrix(run: Run) -> Figure:
    """What the linear probe took each class for: counts, and the share of each class that it got right."""
    if run.unlabelled:
        raise NotDrawn("the data set has no labels")
    names = class_names(run)
    labels = class_indices(run, "test_lbl.npy", names)
    predicted = class_indices(run, "test_pred.npy", names, rows=len(labels))
    K, total = len(names), len(labels)
    counts = np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K)
    chance = run.scores.get("chance") or counts.sum(1).max() / total
    title = f"Linear probe: {percent(counts.trace() / total)} of {total:,} test images right (chance {percent(chance)})"
    caption = "Counts of test images: rows are true classes, columns what the probe said. Blue is right, orange wrong. "
    wide, high = float(np.clip(0.82 * K, 5, 8.2)), float(np.clip(0.52 * K, 3, 7))  # inches
    figure = sheet((wide + 2, high + 1.5), title, caption + tag(run.recipe))
    left, bars = figure.subplots(1, 2, width_ratios=[wide, 1.1], sharey=True)
    counts_table(left, counts, names)
    lie_down(left, cell=150 * wide / K)
    accuracy_bars(bars, counts)
    return figure


def counts_table(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
    K = len(names)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    same = np.eye(K, dtype=bool)
    worst = max(share[~same].max(initial=0), 1e-9)
    colours = np.where(same[..., None], RIGHT(share), WRONG(share / worst * (~same)))
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    size = 10.5 if K <= 12 else 7
    for i, j in np.ndindex(K, K) if K <= 20 else ():
        colour = "white" if i == j and share[i, j] > 0.54 else INK
        axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", size=size, color=colour)
    size, step = 9 if K <= 20 else max(5.0, 9 - K / 20), -(-K // 100)
    places, shown = range(0, K, step), names[::step]
    axes.set_xticks(places, shown, size=size)
    axes.set_yticks(places, shown, size=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def lie_down(axes: Axes, cell: float) -> None:
    """Turn the names under the columns where one is wider than a column, `cell` pixels."""
    if max(label.get_window_extent().width for label in axes.get_xticklabels()) > cell - 6:
        axes.tick_params(axis="x", rotation=90)


def accuracy_bars(axes: Axes, counts: np.ndarray) -> None:
    """How much of each row is on the diagonal; a class without test images has no bar."""
    K, sums = len(counts), counts.sum(1)
    share = counts.diagonal() / np.maximum(1, sums)
    axes.barh(np.arange(K), share, height=0.72, color="#b9c0f2")
    for i in range(K) if K <= 40 else ():
        text = percent(share[i]) if sums[i] else "–"
        axes.text(0.04, i, text, va="center", size=10 if K <= 20 else 6)
    axes.set(xlim=(0, 1))
    axes.set_xticks([0.35], ["accuracy"], size=9)
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)


@styled()
def pca_embedding(run: Run) -> Figure:
    """The test embeddings along their two directions of greatest variance."""
    split, embeddings, labels, names = embedded(run, least=2)
    N = len(embeddings)
    pca, points = principal(embeddings, 2)
    shares = [*np.nan_to_num(pca.explained_variance_ratio_), 0.0][:2]
    title = f"PCA of {N:,} {split} embeddings: 2 components hold {percent(sum(shares))} of the variance"
    rows = sample(N)
    figure = sheet((8, 6.6), title, f"{origin(len(rows), N, split)}. {reading(labels, names)} {tag(run.recipe)}")
    axes = figure.subplots()
    axes.set(xlabel=f"first component, {percent(shares[0])} of the variance")
    axes.set(ylabel=f"second component, {percent(shares[1])} of the variance")
    scatter(axes, points[rows], None if labels is None else labels[rows], names)
    return figure


@styled()
def tsne_embedding(run: Run) -> Figure:
    """The test embeddings, or 5,000 of them drawn at random, in a plane that keeps neighbours (t-SNE)."""
    split, embeddings, labels, names = embedded(run, least=3)
    N, D = embeddings.shape
    rows = sample(N)
    points, perplexity = tsne(embeddings[rows])
    knn = run.scores.get("knn_accuracy")
    judged = f": kNN in all {D:,} dimensions is {percent(knn)} right" if knn else ""
    how = f"cosine, perplexity {perplexity:.3g}. Near means alike; the size and distance of clusters mean little"
    caption = f"{origin(len(rows), N, split)}; {how}. {reading(labels, names)} {tag(run.recipe)}"
    figure = sheet((8, 6.6), f"t-SNE of {len(rows):,} {split} embeddings{judged}", caption)
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    scatter(axes, points, None if labels is None else labels[rows], names)
    return figure


def tsne(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """t-SNE (van der Maaten and Hinton 2008) of rows of length 1, after PCA to at most 50 dimensions.

    Length 1 makes near rows those of a great cosine, which is what SimCLR trains and kNN counts: kNN in the plane is
    52.8 % right, 51.2 % without. 5,000 rows take 20 s at angle 0.8; 0.5 takes 30 s for a plane as good, and so does
    openTSNE. One thread: its sums have one order, so the bits are the same each time; two threads on a busy machine
    took 57 s.

    Args:
        embeddings: float (n, D), n at least 3.

    Returns:
        float32 (n, 2), and the perplexity.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, reduced = principal(embeddings / np.maximum(lengths, 1e-12), 50)
    if not np.ptp(reduced, axis=0).any():
        raise NotDrawn(f"all {len(reduced)} embeddings point the same way: they have no neighbours to keep")
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    with threadpool_limits(1):
        model = TSNE(init="pca", perplexity=perplexity, angle=0.8, random_state=0)
        return model.fit_transform(reduced), perplexity


def principal(embeddings: np.ndarray, k: int) -> tuple[PCA, np.ndarray]:
    """The first k principal components, at least two columns: float (n, k or fewer)."""
    with np.errstate(invalid="ignore"):  # no variance at all
        pca = PCA(min(k, *embeddings.shape), random_state=0)
        points = pca.fit_transform(embeddings)
    return pca, np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))


@styled()
def views(run: Run, images: int = 10, most: int = 8) -> Figure:
    """A grid: a column an image, the original on top, below it the views that the network saw."""
    tiles = needed(run, runs.VIEWS)  # uint8 (n, 1 + V, C, h, w)
    if tiles.ndim != 5 or tiles.dtype != np.uint8 or 0 in tiles.shape:
        raise InputError(f"{runs.VIEWS} must be uint8 (n, 1 + V, C, h, w), not {tiles.dtype} {tiles.shape}")
    recipe, V = run.recipe, tiles.shape[1] - 1
    tiles = tiles[:images, : 1 + most]
    n, rows, _, h, w = tiles.shape
    shown = f"{V} views" if rows == 1 + V else f"{rows - 1} of {V:,} views"
    title = f"Views as the network sees them: {shown} of each of {n} images, {h} × {w} pixels"
    figure = sheet((8, 0.9 + 7.4 / max(n, 5) * rows * h / w), title, f"{drawn(recipe)} {tag(recipe)}")
    axes = figure.subplots()
    gap = max(1, w // 16)
    axes.imshow(mosaic(tiles, gap), interpolation="nearest" if w < 100 else None)
    axes.set_xticks([])
    axes.set_yticks(
        [(h - 1) / 2 + i * (h + gap) for i in range(rows)], ["original", *(f"view {i}" for i in range(1, rows))]
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def mosaic(tiles: np.ndarray, gap: int) -> np.ndarray:
    """uint8 (n, rows, C, h, w) -> (rows (h + gap) - gap, n (w + gap) - gap, 3), white between the tiles."""
    n, rows, C, h, w = tiles.shape
    rgb = tiles[:, :, :3] if C >= 3 else np.repeat(tiles[:, :, :1], 3, axis=2)
    padded = np.pad(rgb, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    return padded.transpose(1, 3, 0, 4, 2).reshape(rows * (h + gap), n * (w + gap), 3)[:-gap, :-gap]


def drawn(recipe: dict[str, Any]) -> str:
    """How a view is drawn, in words."""
    settings = recipe.get("augmentation") or {}
    words = [f"crop of at least {100 * settings['crop_min']:g} % of the area"] if "crop_min" in settings else []
    for key, word in (("flip", "flip"), ("jitter", "colour jitter"), ("grayscale", "grayscale"), ("blur", "blur")):
        if settings.get(key):
            words.append(f"{word} {100 * settings[key]:g} %")
    return f"Each view is drawn at random: {', '.join(words)}." if words else ""


# What they are drawn from


def needed(run: Run, name: str) -> np.ndarray:
    """An array of the run; `NotDrawn` says which command makes it when it is not there."""
    try:
        return run.array(name)
    except InputError as error:
        raise error if run.file(name).exists() else NotDrawn(str(error)) from None


def embedded(run: Run, least: int) -> tuple[str, np.ndarray, np.ndarray | None, list[str]]:
    """The embeddings that are shown.

    Returns:
        "test", or "training" where no test images were held out; the embeddings (N, D), their labels (N,) or None, and
        the names of the classes.
    """
    split, name, embeddings = "test", "test_emb.npy", needed(run, "test_emb.npy")
    if run.unlabelled and not len(embeddings) and run.file("train_emb.npy").exists():
        split, name, embeddings = "training", "train_emb.npy", run.array("train_emb.npy")
    if embeddings.ndim != 2 or 0 in embeddings.shape[1:]:
        raise InputError(f"{name} must be (N, D), not {embeddings.shape}")
    if len(embeddings) < least:
        raise NotDrawn(f"{name} has {len(embeddings)} rows, at least {least} are needed")
    if not np.isfinite(embeddings).all():
        raise InputError(f"{name} must be finite, but holds NaN or infinite values")
    if run.unlabelled:
        return split, embeddings, None, []
    names = class_names(run)
    return split, embeddings, class_indices(run, "test_lbl.npy", names, rows=len(embeddings)), names


def class_names(run: Run) -> list[str]:
    """The names in classes.json, each on one line and short enough for a label."""
    path = run.file(runs.CLASSES)
    if not path.exists():
        raise NotDrawn(f"{str(path)!r} is missing: `crlf embed {run.path}` makes it")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(names, list) or not names:
        raise InputError(f"{str(path)!r} must hold a list of class names")
    return [short(str(name)) for name in names]


def short(name: str, most: int = 24) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "?"
    return name if len(name) <= most else name[: most - 1] + "…"


def class_indices(run: Run, name: str, names: Sequence[str], rows: int | None = None) -> np.ndarray:
    """Labels or predictions: int64 (N,), each the place of a name."""
    array = needed(run, name)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise InputError(f"{name} must be whole numbers (N,), not {array.dtype} {array.shape}")
    if not 0 <= array.min() <= array.max() < len(names):
        raise InputError(f"{name} must be in 0..{len(names) - 1}, not {array.min()}..{array.max()}")
    if rows not in (None, len(array)):
        raise InputError(f"{name} must have {rows} rows, not {len(array)}")
    return array.astype(np.int64)


def sample(N: int) -> np.ndarray:
    """Which rows a scatter plot shows, in random order, so that no class lies on top."""
    return np.random.default_rng(0).permutation(N)[:SHOWN]


# What they are drawn with


def sheet(size: tuple[float, float], title: str, caption: str) -> Figure:
    """An empty figure of this size in inches, with its title on top and its caption at the foot."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    scale = max(1.0, size[0] / 8)  # a page shows all figures in one width
    heading = figure.suptitle(title, x=0.012, ha="left", size=12.5 * scale)
    heading.set_fontsize(12.5 * scale * min(1, 0.97 * figure.bbox.width / heading.get_window_extent().width))
    figure.supxlabel(
        textwrap.fill(caption.strip(), int(15 * size[0] / scale)), x=0.012, ha="left", color=SOFT, size=9 * scale
    )
    return figure


def tag(recipe: dict[str, Any]) -> str:
    """Which run this is."""
    return "Run: {method}, encoder {encoder}, epochs {epochs}, seed {seed}.".format_map(
        defaultdict(lambda: "?", recipe)
    )


def origin(shown: int, N: int, split: str) -> str:
    return f"A point is a {split} image" + (f", {shown:,} of {N:,} drawn at random" if shown < N else "")


def reading(labels: np.ndarray | None, names: Sequence[str]) -> str:
    if labels is None:
        return "This run has no labels."
    return "A name stands where its class is densest." if len(names) <= NAMED else "Colour and shape tell the class."


def scatter(axes: Axes, points: np.ndarray, labels: np.ndarray | None, names: list[str]) -> None:
    """Points (n, 2) in the colour and marker of their class, and the name of each class where it is densest."""
    axes.set_aspect("equal", adjustable="datalim")
    size = float(np.clip(40_000 / len(points), 8, 30))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=PALETTE[0], alpha=0.6, lw=0)
        return
    for part in np.array_split(np.arange(len(points)), min(20, len(points))):  # mixed: no class covers the others
        for k in np.unique(labels[part]):
            x, y = points[part[labels[part] == k]].T
            axes.scatter(x, y, s=size, color=look(k)[0], marker=look(k)[1], alpha=0.8, lw=0)
    legend(axes, names)
    if len(names) <= NAMED:
        name_classes(axes, [(k, short(names[k], 16), densest(points[labels == k])) for k in np.unique(labels)])


def densest(points: np.ndarray) -> np.ndarray:
    """Of points (n, 2) the one whose nearest eighth is closest: (2,). A median may lie between two clusters."""
    few = points[:1000]
    k = min(len(few) - 1, max(1, len(few) // 8))
    return few[np.partition(cdist(few, few), k, axis=1)[:, k].argmin()]


def look(k: int) -> tuple[str, str]:
    """The colour and the marker of class k: another pair for each of the first 100."""
    return PALETTE[k % 10], MARKERS[(k + k // 10) % 10]


def legend(axes: Axes, names: list[str], most: int = 76) -> None:
    """The classes in their order, right of the axes; of more than 76 the rest is counted."""
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
        fontsize=6.5 if small else 9.5,
        labelspacing=0.35 if small else 0.6,
        handletextpad=0.2,
        columnspacing=0.8,
    )


def name_classes(axes: Axes, classes: Sequence[tuple[int, str, np.ndarray]]) -> None:
    """A mark at a place (2,) of each class, and the class's name at the nearest free place."""
    assert isinstance(axes.figure, Figure)
    axes.figure.draw_without_rendering()  # only the layout knows where the axes will lie
    axes.set_aspect("auto")  # it stays equal: the limits and the frame are settled
    axes.autoscale(False)
    dots = [axes.transData.transform(place) for _, _, place in classes]
    taken = [Bbox.from_bounds(x - 10, y - 10, 20, 20) for x, y in dots]
    frame = axes.get_window_extent().padded(-8)
    for (k, name, place), dot in zip(classes, dots, strict=True):
        colour, marker = look(k)
        axes.plot(*place, marker=marker, color=colour, ms=9, mec="white", mew=1.4, zorder=3)
        text = axes.text(place[0], place[1], name, size=10.5, weight="bold", ha="center", va="center", zorder=4)
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        box = free_place(text.get_window_extent().padded(2), dot, taken, frame)
        taken.append(box)
        centre = axes.transData.inverted().transform((box.x0 + box.width / 2, box.y0 + box.height / 2))
        text.set_position(tuple(centre))
        axes.plot(*np.stack([place, centre]).T, color=INK, lw=0.7, zorder=2.5)


def free_place(box: Bbox, dot: np.ndarray, taken: list[Bbox], frame: Bbox) -> Bbox:
    """The box moved to the place nearest to the dot that overlaps nothing; all in pixels."""
    for gap in range(12, 600, 12):
        for angle in np.pi / 2 + np.arange(16) * np.pi / 8:
            x = dot[0] + np.cos(angle) * (box.width / 2 + gap) - box.width / 2
            y = dot[1] + np.sin(angle) * (box.height / 2 + gap) - box.height / 2
            moved = Bbox.from_bounds(x, y, box.width, box.height)
            inside = frame.x0 < moved.x0 and moved.x1 < frame.x1 and frame.y0 < moved.y0 and moved.y1 < frame.y1
            if inside and not moved.count_overlaps(taken):
                return moved
    return box


FIGURES: dict[str, Callable[[Run], Figure]] = {
    "loss_curve": loss_curve,
    "health": health,
    "confusion_matrix": confusion_matrix,
    "pca_embedding": pca_embedding,
    "tsne_embedding": tsne_embedding,
    "views": views,
}
