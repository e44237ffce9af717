"""The report as a page: its sections, its style, its script, and the policy that keeps it from loading anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib.resources import files as resources
from typing import Any

import numpy as np

from crlf.methods import known
from crlf.runs.files import finite
from crlf.runs.run import FIGURES, Run
from crlf.visualization.figures.run_arrays import class_indices
from crlf.visualization.figures.style import NIGHT, PALETTE
from crlf.visualization.report import gallery
from crlf.visualization.report.appendix import drawing, files, measured, readable, repeat, settings
from crlf.visualization.report.confusion import confusion
from crlf.visualization.report.curves import curves
from crlf.visualization.report.html import DATA, section
from crlf.visualization.report.pictures import Shown, across, contact_sheet, shown
from crlf.visualization.report.plots import library, map_plot
from crlf.visualization.report.verdict import todo, verdict, what_labels_add


def page(run: Run) -> str:
    """The report as HTML."""
    recipe, scores = run.settings, run.scores
    method, data = (str(recipe.get(key, "?")) for key in ("method", "data"))
    title = f"{known(method).title or method} on {DATA.get(data, data)}: what the encoder learned"
    images = shown(run)
    training, plots = curves(run)
    if images is not None:
        plots["map-plot"] = map_plot(images)
    figures = "".join(drawing(run, name) for name in FIGURES if readable(run.file(name)))
    sections = [
        training,
        *(pictured(run, images) if images is not None else ()),
        gallery.seen(run),
        section("Numbers", measured(scores)),
        section("Settings", settings(recipe)),
        section("Repeat it", repeat(run)),
        section("Figures", figures and folded("The same as pictures, for papers and slides", figures)),
        section("Files", folded("What the run folder holds", files(run))),
    ]
    body = "".join(sections)
    head = f"<h1>{escape(title)}</h1>\n<p class=soft>Run folder <code>{escape(str(run.path))}</code></p>"
    opening = f"<header>{head}{verdict(run, scores)}{todo(run, scores, images is not None)}</header>{contents(body)}"
    return document(title, f"{opening}<main>{body}</main>", style(images), plots, images)


def pictured(run: Run, images: Shown) -> list[str]:
    """The sections that show images."""
    table = ""
    if images.labels is not None and images.predicted is not None:
        labels = class_indices(run, "test_lbl.npy", images.names, rows=images.total)
        table = confusion(images, labels, class_indices(run, "test_pred.npy", images.names, rows=images.total))
    found = [
        gallery.maps(images),
        table,
        gallery.mistakes(images),
        gallery.neighbours(images),
        gallery.clusters(images),
    ]
    return [*found, what_labels_add() if images.labels is None else ""]


def folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>"


def contents(body: str) -> str:
    """Links to the sections."""
    found = re.findall(r'<section id="([\w-]+)">\n<h2>([^<]*)</h2>', body)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f"<nav aria-label=Contents>{links}</nav>\n"


def style(images: Shown | None) -> str:
    """style.css, the colours of the classes by day and by night, and the sheet of pictures."""
    day, night = ("".join(f"--c{k}:{colour};" for k, colour in enumerate(c)) for c in (PALETTE, NIGHT))
    dots = "".join(f".c{k}{{background:var(--c{k})}}" for k in range(len(PALETTE)))
    css = own("style.css")
    css += f":root{{{day}}}@media (prefers-color-scheme:dark){{:root{{{night}}}}}{dots}"
    if images is not None:
        n, h, w, _ = images.thumbnails.shape
        css += f":root{{--columns:{across(n, h, w)};--ratio:{h / w:.4f}}}"
        css += f".pic{{background-image:url({contact_sheet(images.thumbnails)})}}"
    return css


def own(name: str) -> str:
    """A file that stands beside this one."""
    return resources("crlf.visualization.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str, css: str, plots: dict[str, Any], images: Shown | None) -> str:
    """The whole page.

    Scripts are allowed by their hashes alone, and no `eval`. Styles are allowed inline: Bokeh puts style elements into
    the shadow roots of its plots, and widths and places of pictures are style attributes.
    """
    data = {"plots": plots, "images": None if images is None else gallery.facts(images)}
    scripts = [library(), own("script.js")] if plots else []
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed or repr('none')}"
    policy += "; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{css}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{as_data(data)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def as_data(value: Any) -> str:
    """JSON that no parser of HTML takes for a tag."""
    text = json.dumps(finite(value), separators=(",", ":"), default=np.ndarray.tolist)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
