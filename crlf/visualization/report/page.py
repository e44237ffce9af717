"""The page of the report: its sections, style and script, and a policy that forbids loading anything."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files as resources
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from crlf.methods import known
from crlf.runs.files import finite
from crlf.runs.run import Run
from crlf.visualization.figures.run_arrays import class_indices
from crlf.visualization.figures.style import NIGHT, PALETTE
from crlf.visualization.report import gallery
from crlf.visualization.report.appendix import figures, files, repeat, settings
from crlf.visualization.report.confusion import confusion
from crlf.visualization.report.curves import curves
from crlf.visualization.report.html import DATA, Section, quoted, render
from crlf.visualization.report.limits import limits
from crlf.visualization.report.numbers import numbers
from crlf.visualization.report.pictures import SMOOTH, Shown, across, contact_sheet, rim, shown
from crlf.visualization.report.plots import library, map_plot
from crlf.visualization.report.verdict import missing, verdict, what_labels_add


def page(run: Run) -> str:
    """The report as HTML."""
    recipe, scores = run.settings, run.scores
    method, data = (str(recipe.get(key, "?")) for key in ("method", "data"))
    images = shown(run)
    training, plots = curves(run)
    held_back, more = limits(scores)
    plots |= more
    if images is not None:
        plots["map-plot"] = map_plot(images)
    sections = [
        *(pictured(run, images) if images is not None else ()),
        held_back,
        training,
        gallery.seen(run),
        numbers(scores),
        settings(recipe),
        repeat(run),
        figures(run),
        files(run),
    ]
    todo = [*missing(run, scores, images is not None)]
    scripts = [library(), own("overlay.js"), own("script.js")] if plots else []
    return render(
        "page.html",
        title=f"{known(method).title or method} on {name_of(data)}: what the encoder learned",
        folder=str(run.path),
        verdict=verdict(run, scores),
        missing=todo,
        pictured=images is not None,
        commands="\n".join([*(command for _, command in todo), f"crlf report {quoted(run)}"]),
        sections=[made for made in sections if made],
        css=style(images),
        policy=policy(scripts),
        scripts=scripts,
        data=as_data({"plots": plots, "images": None if images is None else gallery.facts(images)}),
    )


def name_of(data: str) -> str:
    """The name of a data set; for files, the name of their folder."""
    return DATA.get(data) or os.path.basename(os.path.abspath(os.path.expanduser(data))) or data


def pictured(run: Run, images: Shown) -> list[Section | None]:
    """The sections that show images."""
    table = None
    if images.labels is not None and images.predicted is not None:
        labels = class_indices(run, "test_lbl.npy", images.names, rows=images.total)
        table = confusion(images, labels, class_indices(run, "test_pred.npy", images.names, rows=images.total))
    found = [
        gallery.maps(images),
        gallery.neighbours(images),
        gallery.clusters(images),
        table,
        gallery.mistakes(images),
    ]
    return [*found, what_labels_add(run) if images.labels is None else None]


def style(images: Shown | None) -> Markup:
    """style.css, the colours of the classes by day and by night, and the sheet of pictures."""
    day, night = ("".join(f"--c{k}:{colour};" for k, colour in enumerate(c)) for c in (PALETTE, NIGHT))
    dots = "".join(f".c{k}{{background:var(--c{k})}}" for k in range(len(PALETTE)))
    css = str(own("style.css"))
    css += f":root{{{day}}}@media (prefers-color-scheme:dark){{:root{{{night}}}}}{dots}"
    if images is not None:
        n, h, w, _ = images.thumbnails.shape
        css += (
            f":root{{--columns:{across(n, h, w)};--ratio:{h / w:.4f};--rim-x:{rim(h) / w:.5f};--rim-y:{rim(h) / h:.5f};"
            f"--scaled:{'auto' if h >= SMOOTH else 'pixelated'}}}"
        )
        css += f".pic{{background-image:url({contact_sheet(images.thumbnails)})}}"
    return Markup(css)


def own(name: str) -> Markup:
    """A file that stands beside this one."""
    return Markup(resources("crlf.visualization.report").joinpath(name).read_text(encoding="utf-8"))


def policy(scripts: Sequence[str]) -> str:
    """What the page may load: nothing.

    Scripts are allowed by their hashes alone, and no `eval`. Styles are allowed inline: Bokeh puts style elements into
    the shadow roots of its plots, and widths and places of pictures are style attributes.
    """
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    found = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed or repr('none')}"
    return found + "; base-uri 'none'; form-action 'none'"


def as_data(value: Any) -> Markup:
    """JSON in which an HTML parser finds no tag."""
    return htmlsafe_json_dumps(finite(value), separators=(",", ":"), default=np.ndarray.tolist)
