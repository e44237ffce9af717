"""The limits of the embeddings: the linear probe with few labels, and on corrupted images."""

from __future__ import annotations

from typing import Any

from crlf.text import percent
from crlf.visualization.report.curves import Panel
from crlf.visualization.report.html import Section, section
from crlf.visualization.report.numbers import is_number, number
from crlf.visualization.report.plots import Line, accuracies

TITLES = {"few-labels": "Few labels", "corruptions": "Corrupted images"}


def limits(scores: dict[str, Any]) -> tuple[Section | None, dict[str, Any]]:
    """The section and its plots; None if neither was measured."""
    panels = [made for made in (few_labels(scores), corruptions(scores)) if made]
    if not panels:
        return None, {}
    title = " and ".join(made.title for made in panels).replace("and C", "and c")
    plots = {made.place: made.plot for made in panels if made.plot}
    return section(title, "training.html", "limits", panels=panels, switch=False), plots


def few_labels(scores: dict[str, Any]) -> Panel | None:
    """The linear probe's accuracy over the number of labels."""
    table = scores.get("few_label")
    rows = {name: row for name, row in table.items() if sound(row)} if isinstance(table, dict) else {}
    if not rows:
        return None
    found = sorted(rows.items(), key=lambda item: item[1]["labels"])
    words = "; ".join(
        f"{name} ({row['labels']:,} labels) {100 * row['mean']:.1f} ± {percent(row['sd'])}" for name, row in found
    )
    xs, means, sds = ([row[key] for _, row in found] for key in ("labels", "mean", "sd"))
    reading = "linear probe, right on test images; mean ± sd over draws" + dashed(scores, "with all labels")
    several, place = len(set(xs)) > 1, "limit-few-labels"
    line = Line("linear probe", xs, means, sds)
    plot = accuracies(place, [line], "labels", number(scores, "linear_accuracy"), log=True) if several else None
    return Panel(place, TITLES["few-labels"], reading, [], words, plot)


def corruptions(scores: dict[str, Any]) -> Panel | None:
    """The linear probe's accuracy over the strength of each corruption."""
    table = scores.get("robustness")
    rows = table.items() if isinstance(table, dict) else ()
    found = {name: row for name, row in rows if isinstance(row, list) and row and all(map(is_number, row))}
    if not found:
        return None
    words = "; ".join(f"{name} " + ", ".join(map(percent, row)) for name, row in found.items())
    reading = "linear probe, right on corrupted images by strength" + dashed(scores, "on the images as they are")
    lines = [Line(name, list(range(1, 1 + len(row))), row) for name, row in found.items()]
    place = "limit-corruptions"
    plot = accuracies(place, lines, "strength", number(scores, "linear_accuracy"))
    return Panel(place, TITLES["corruptions"], reading, list(found), words, plot)


def dashed(scores: dict[str, Any], what: str) -> str:
    level = number(scores, "linear_accuracy")
    return "" if level is None else f"; dashed: {what}, {percent(level)}"


def sound(row: Any) -> bool:
    """Whether a row has its number of labels, its mean and its deviation."""
    return (
        isinstance(row, dict) and all(is_number(row.get(key)) for key in ("labels", "mean", "sd")) and row["labels"] > 0
    )
