"""How training went, as plots: the loss, kNN where it was logged, and the health of the features."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from crlf.methods import known
from crlf.runs.run import Run
from crlf.visualization.figures.curves import chance_loss
from crlf.visualization.report.html import section
from crlf.visualization.report.plots import curve

H_AND_Z = {
    "rankme": ("RankMe", "how many dimensions are in use; it can only be compared with runs of the same sample"),
    "alignment": ("Alignment", "squared distance of two views of an image; 0 is best"),
    "uniformity": ("Uniformity", "how evenly the sphere is filled; lower is more even, 0 is collapse"),
    "spread": ("Spread", "deviation of the normalised features, 1 for independent ones; 0 is collapse"),
}
VOTES = "share that is right on a sample of the training images; labels serve this only; higher is better"


def curves(run: Run) -> tuple[str, dict[str, Any]]:
    """The section, and the plots in it."""
    log = [row for row in run.log() if isinstance(row.get("epoch"), float)]
    level: tuple[float | None, str] = next(iter(chance_loss(run.settings)), (None, ""))
    reading = "lower is better" + dashed(*level)
    panels = [panel("loss", loss_name(run.settings), reading, log, {"loss": "loss"}, level[0])]
    votes = sorted({key for row in log for key in row if "knn" in key and isinstance(row[key], float)})
    if votes:
        lines = {key.replace("_", " "): key for key in votes}
        panels.append(panel("knn", "kNN while it trains", VOTES, log, lines))
    for measure, (name, reading) in H_AND_Z.items():
        lines = {"h, the embedding": f"h_{measure}", "z, the projection": f"z_{measure}"}
        panels.append(panel(measure, name, reading, log, lines))
    found = [made for made in panels if made]
    if not found:
        return "", {}
    html = '<div class="row controls"><fieldset><legend>Against</legend>'
    html += "<label><input type=radio name=against value=epochs checked> epochs</label>"
    html += "<label><input type=radio name=against value=seconds> seconds</label></fieldset></div>\n"
    html += f"<div class=curves>{''.join(text for text, _ in found)}</div>\n"
    plots = {name: plot for _, made in found for name, plot in made.items()}
    return section("Training", html), plots


def loss_name(recipe: dict[str, Any]) -> str:
    name = known(recipe.get("method")).loss_name
    return f"Loss ({name})" if name else "Loss"


def dashed(level: float | None, formula: str) -> str:
    return "" if level is None else f"; dashed: chance, {formula} = {level:.2f}"


def panel(
    name: str, title: str, reading: str, log: Sequence[dict[str, Any]], lines: dict[str, str],
    level: float | None = None,
) -> tuple[str, dict[str, Any]] | None:  # fmt: skip
    """A plot under its title, and what to see in it; None where nothing was logged."""
    lines = {text: key for text, key in lines.items() if any(isinstance(row.get(key), float) for row in log)}
    if not lines:
        return None
    rows = [row for row in log if any(isinstance(row.get(key), float) for key in lines.values())]
    words = "; ".join(course(text, key, rows) for text, key in lines.items())
    keys = "".join(f'<span class="key k{i}">{escape(text)}</span>' for i, text in enumerate(lines) if len(lines) > 1)
    html = (
        f"<figure class=card><figcaption><b>{escape(title)}</b><span class=keys>{keys}</span>"
        f"<div class=soft>{escape(reading)}</div>"
        f'</figcaption><div id="curve-{name}" class=plot role=img aria-label="{escape(title)}: {escape(words)}"></div>'
        f"<noscript><p class=soft>{escape(words)}</p></noscript></figure>\n"
    )
    return html, {f"curve-{name}": curve(f"curve-{name}", rows, lines, level)}


def course(text: str, key: str, rows: Sequence[dict[str, Any]]) -> str:
    known = [row for row in rows if isinstance(row.get(key), float)]
    ends = dict.fromkeys((0, len(known) - 1))
    return f"{text} " + ", then ".join(f"{known[i][key]:.3g} at epoch {known[i]['epoch']:.3g}" for i in ends)
