"""Plots of the training: the loss, kNN if it was logged, and the health of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crlf.methods import known
from crlf.runs.run import Run
from crlf.text import percent
from crlf.visualization.figures.curves import chance_loss
from crlf.visualization.report.html import Section, section
from crlf.visualization.report.plots import curve

H_AND_Z = {
    "rankme": ("RankMe", "how many dimensions the features fill; 1 is collapse; compare it on the same images only"),
    "alignment": ("Alignment", "squared distance between two views of an image; 0 is best"),
    "uniformity": ("Uniformity", "how evenly the features fill the sphere; lower is more even, 0 is collapse"),
    "spread": ("Spread", "standard deviation of the normalised features; 1 if they are independent, 0 is collapse"),
}
VOTES = "accuracy on a sample of the training images; labels are used for this only; higher is better"


@dataclass(frozen=True)
class Panel:
    """A plot with its texts."""

    place: str  # the element that it is drawn in
    title: str
    reading: str
    keys: list[str]  # of its lines, where there are several
    words: str  # what it shows, for those who cannot see it
    plot: dict[str, Any] | None  # None where there is one number a line: then the words are shown


def curves(run: Run) -> tuple[Section | None, dict[str, Any]]:
    """The section, and the plots in it."""
    log = [row for row in run.log() if isinstance(row.get("epoch"), float)]
    level: tuple[float | None, str] = next(iter(chance_loss(run.settings)), (None, ""))
    reading = "lower is better" + dashed(*level)
    panels = [panel("loss", loss_name(run.settings), reading, log, {"loss": "loss"}, level[0])]
    votes = sorted({key for row in log for key in row if "knn" in key and isinstance(row[key], float)})
    if votes:
        lines = {key.replace("knn", "kNN").replace("_", " "): key for key in votes}
        panels.append(panel("knn", "kNN during training", VOTES, log, lines, share=True))
    for measure, (name, reading) in H_AND_Z.items():
        lines = {"h, the embedding": f"h_{measure}", "z, the projection": f"z_{measure}"}
        panels.append(panel(measure, name, reading, log, lines))
    found = [made for made in panels if made]
    if not found:
        return None, {}
    plots = {made.place: made.plot for made in found if made.plot}
    return section("Training", "training.html", panels=found, switch=bool(plots)), plots


def loss_name(recipe: dict[str, Any]) -> str:
    name = known(recipe.get("method")).loss_name
    return f"Loss ({name})" if name else "Loss"


def dashed(level: float | None, formula: str) -> str:
    return "" if level is None else f"; dashed: chance, {formula} = {level:.2f}"


def panel(
    name: str, title: str, reading: str, log: Sequence[dict[str, Any]], lines: dict[str, str],
    level: float | None = None, share: bool = False,
) -> Panel | None:  # fmt: skip
    """A plot with its title and a reading aid; None if nothing was logged."""
    lines = {text: key for text, key in lines.items() if any(isinstance(row.get(key), float) for row in log)}
    if not lines:
        return None
    rows = [row for row in log if any(isinstance(row.get(key), float) for key in lines.values())]
    words = "; ".join(course(text, key, rows, share) for text, key in lines.items())
    keys, place = list(lines) if len(lines) > 1 else [], f"curve-{name}"
    several = any(sum(isinstance(row.get(key), float) for row in rows) > 1 for key in lines.values())
    return Panel(place, title, reading, keys, words, curve(place, rows, lines, level, share) if several else None)


def course(text: str, key: str, rows: Sequence[dict[str, Any]], share: bool) -> str:
    """A line in words: its name, its first and its last value."""
    known = [row for row in rows if isinstance(row.get(key), float)]
    ends = dict.fromkeys((0, len(known) - 1))
    written = [percent(known[i][key]) if share else f"{known[i][key]:.3g}".replace("-", "−") for i in ends]
    return f"{text} " + ", then ".join(
        f"{value} at epoch {known[i]['epoch']:.3g}" for value, i in zip(written, ends, strict=True)
    )
