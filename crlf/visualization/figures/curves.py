"""Figures of the training: the loss, and the health of the features."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crlf.methods import known
from crlf.runs.run import LOG, LOSS, Run
from crlf.visualization.figures.run_arrays import NotDrawn
from crlf.visualization.figures.style import MARKERS, PALETTE, narrow, points, sheet, styled, tag


@styled()
def loss_curve(run: Run) -> Figure:
    """The loss over training: what was logged as a line, the mean of each epoch as a point."""
    means = np.atleast_1d(run.array(LOSS)) if run.file(LOSS).exists() else np.empty(0)
    rows = [row for row in run.log() if isinstance(row.get("loss"), float) and row.get("epoch")]
    if not rows and not means.size:
        raise NotDrawn(f"{str(run.file(LOG))!r} holds no loss yet: `crlf pretrain` writes it")
    recipe = run.settings
    done = float(max(len(means), *(row["epoch"] for row in rows[-1:]), 0))
    caption = "Each logged value is the mean over the steps since the last one. " if rows else ""
    figure = sheet((8, 4.6), loss_title(recipe, rows, means, done), caption + tag(recipe))
    axes = figure.subplots()
    if len(rows) <= 1 and len(means) <= 1:
        once(axes, float(means[0]) if len(means) else rows[0]["loss"], done, chance_loss(recipe))
        return figure
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
    key(axes, ncols=3, columnspacing=1.6)
    return figure


def once(axes: Axes, loss: float, epoch: float, chance: list[tuple[float, str]]) -> None:
    """Write a loss that was measured only once as a number."""
    beside = "".join(f"; chance: {formula} = {level:.2f}" for level, formula in chance)
    axes.set_axis_off()
    axes.text(0.5, 0.6, f"{loss:.3f}", ha="center", size=points(34), color=PALETTE[0], transform=axes.transAxes)
    text = f"loss, measured once, by epoch {epoch:.3g}{beside}"
    axes.text(0.5, 0.4, text, ha="center", size=points(10), transform=axes.transAxes)


def loss_title(recipe: dict[str, Any], rows: list[dict[str, Any]], means: np.ndarray, done: float) -> str:
    course = list(means) if len(means) > 1 or not rows else [row["loss"] for row in rows]
    name = known(recipe.get("method")).loss_name
    asked = done if recipe.get("minutes") else recipe.get("epochs", done)
    epochs = (
        f"{round(done, 1):g} of {asked:,} epochs" if done < asked else f"{round(done, 1):,g} epoch{'s'[: done > 1]}"
    )
    each = f"{rows[-1]['step'] / rows[-1]['epoch']:,.0f}" if rows else ""
    facts = [f"{each} step{'s'[: each != '1']} each"] if rows else []
    if "temperature" in (recipe.get("head") or {}):
        facts.append(f"τ {recipe['head']['temperature']:g}")
    numbers = " → ".join(f"{value:.2f}" for value in dict.fromkeys((course[0], course[-1])))
    return f"Loss: {name + ' ' * bool(name)}{numbers} over {epochs}" + (f" ({', '.join(facts)})" if facts else "")


def chance_loss(recipe: dict[str, Any]) -> list[tuple[float, str]]:
    """The loss when all similarities are equal, and its formula: each candidate is as likely as the positive."""
    if not {"views", "batch_size"} <= set(recipe):
        return []
    terms = known(recipe.get("method")).candidates(recipe["views"], recipe["batch_size"])
    return [] if terms is None else [(float(np.log(terms)), f"ln {terms:,}")]


HEALTH = {
    "rankme": "RankMe",
    "alignment": "alignment (0 is best)",
    "uniformity": "uniformity (low is even)",
    "spread": "spread (0 is collapse)",
}  # measures of `crlf.training.monitor`, each in a panel of its own


@styled()
def health(run: Run) -> Figure:
    """Rank, alignment, uniformity and spread over training, and at its end the cosines and the singular values."""
    rows = [row for row in run.log() if isinstance(row.get("h_rankme"), float) and row.get("epoch")]
    if not rows:
        raise NotDrawn(f"{str(run.file(LOG))!r} holds no health yet: `crlf pretrain` logs it after an epoch")
    caption = (
        "Measured on two views of some training images, without labels. h is the embedding, z the projection that the "
        "loss compares. Last two panels: cosines at the end; singular values of h, relative to the largest: the slower "
        "they fall, the higher the rank. "
    )
    figure = sheet((8, 12 if narrow() else 6.2), health_title(rows), caption + tag(run.settings))
    panels = list(figure.subplots(*((3, 2) if narrow() else (2, 3))).flat)
    for axes, (measure, label) in zip(panels, HEALTH.items(), strict=False):
        if len(rows) == 1:
            as_number(axes, rows[0], measure, label)
            continue
        over_epochs(axes, rows, measure)
        axes.set(xlabel="epoch", ylabel=label)
    cosines(panels[4], rows[-1])
    decay(panels[5], rows)
    for axes in (axes for axes in panels if axes.get_legend_handles_labels()[0]):
        key(axes, ncols=2, fontsize=points(8.5), handlelength=1.2, handletextpad=0.5, columnspacing=1.0)
    return figure


def key(axes: Axes, ncols: int, **how: Any) -> None:
    """Draw the legend above the axes, or inside them if a column of a paper has no room above."""
    if narrow():
        axes.legend(loc="best", fontsize=points(8), handlelength=1.2)
    else:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=ncols, borderaxespad=0.2, **how)


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


def as_number(axes: Axes, row: dict[str, Any], measure: str, label: str) -> None:
    """Write values that were measured only once as numbers."""
    known = {place: row[f"{place}_{measure}"] for place in "hz" if isinstance(row.get(f"{place}_{measure}"), float)}
    numbers = "\n".join(f"{place}: {value:.3g}".replace("-", "−") for place, value in known.items())
    axes.set_axis_off()
    axes.text(0.5, 0.62, numbers, ha="center", va="center", fontsize=points(15), transform=axes.transAxes)
    text = f"{label}\nmeasured once, at epoch {row['epoch']:.3g}"
    axes.text(0.5, 0.3, text, ha="center", va="center", fontsize=points(8.5), transform=axes.transAxes)


def over_epochs(axes: Axes, rows: list[dict[str, Any]], measure: str) -> None:
    """Draw a line for h and one for z, if they were measured."""
    for place, colour, marker in zip("hz", PALETTE, MARKERS, strict=False):
        known = [(r["epoch"], r[f"{place}_{measure}"]) for r in rows if isinstance(r.get(f"{place}_{measure}"), float)]
        if known:
            axes.plot(*zip(*known, strict=True), f"{marker}-", color=colour, ms=3.5, lw=1.3, label=place)
    axes.set(xlim=(0, 1.03 * rows[-1]["epoch"]), **({"ylim": (0, 1.05)} if measure == "spread" else {}))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.ticklabel_format(style="plain", useOffset=False)  # an exponent above the axis would overlap the legend
    axes.grid(axis="y", lw=0.6)


def cosines(axes: Axes, row: dict[str, Any]) -> None:
    """Draw the distributions of the cosine of two views, of the same image and of different images."""
    kinds = {"one image": "positive_histogram", "two images": "negative_histogram"}
    for (name, key), colour in zip(kinds.items(), PALETTE[2:], strict=False):
        counts = np.asarray(row.get(key) or [0.0], dtype=float)
        share = counts / max(1.0, counts.sum())
        axes.stairs(share, np.linspace(-1, 1, len(share) + 1), fill=True, alpha=0.45, color=colour, label=name)
    axes.set(xlabel="cosine of two views", ylabel="share of pairs", xlim=(-1, 1))


def decay(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the singular values of h at the start and at the end, with logarithmic axes."""
    ends = {"first": rows[0], "last": rows[-1]} if len(rows) > 1 else {"last": rows[-1]}
    for (name, row), colour in zip(ends.items(), (PALETTE[8], PALETTE[0])[-len(ends) :], strict=True):
        values = [max(value or 0.0, 1e-6) for value in row.get("h_spectrum") or [1.0]]
        axes.plot(2.0 ** np.arange(len(values)), values, "o-", ms=3.5, lw=1.3, color=colour, label=name)
    axes.set(xlabel="rank", ylabel="singular value of h", xscale="log", yscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(axis="y", lw=0.6)
