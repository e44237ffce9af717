"""The interactive plots, by Bokeh: the maps of the embeddings, and the curves of training.

A plot is a dict of JSON that script.js hands to BokehJS. No plot holds code (Bokeh's CustomJS): it would have the page
allow `eval`. Colours come from the page, which knows whether it is night.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    Plot,
    Range1d,
    ResetTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

from crlf.visualization.figures.style import PALETTE
from crlf.visualization.report.pictures import Shown

SHAPES = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "square_pin", "triangle_pin",
          "plus")  # fmt: skip
"""BokehJS's markers: with ten colours, another pair for each of the first 100 classes. style.css has the same ones."""


@lru_cache(maxsize=1)
def library() -> Markup:
    """BokehJS, the part that draws plots: 1.3 MB."""
    [source] = Resources(mode="inline", components=["bokeh"]).js_raw[:1]
    return Markup(source)


def as_json(plot: Plot, place: str) -> dict[str, Any]:
    """What BokehJS needs to draw a plot in the element `place`; the same plot gives the same dict each time."""
    text = json.dumps(json_item(plot, ID(place)))
    names: dict[str, str] = {}  # Bokeh counts the models of a process
    text = re.sub(
        r'"(p\d+|[0-9a-f]{8}-[0-9a-f-]{27})"', lambda m: f'"p{names.setdefault(m[1], str(len(names)))}"', text
    )
    return json.loads(text)


def map_plot(shown: Shown) -> dict[str, Any]:
    """A scatter plot of the images; script.js chooses the map, the colours and what is faded."""
    kinds = shown.cluster if shown.labels is None else shown.labels[: shown.points]
    columns: dict[str, Any] = {"fill": [PALETTE[0]] * shown.points, "alpha": np.ones(shown.points)}
    columns["shape"] = [SHAPES[(k // 10) % len(SHAPES)] for k in kinds.tolist()]
    for name, points in shown.maps.items():
        columns[f"{name}_x"], columns[f"{name}_y"] = points.astype(np.float32).T
    first = next(iter(shown.maps))
    plot = figure(
        x_range=Range1d(start=0, end=1), y_range=Range1d(start=0, end=1), height=560, sizing_mode="stretch_width",
        tools="", toolbar_location="right", output_backend="canvas", name="map",
    )  # fmt: skip
    zoom = WheelZoomTool(modifiers="ctrl")  # the wheel alone scrolls the page
    plot.add_tools(PanTool(), zoom, ResetTool())
    plot.toolbar.active_scroll = zoom
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    links = ColumnDataSource({key: [] for key in ("x0", "y0", "x1", "y1")}, name="links")
    plot.segment("x0", "y0", "x1", "y1", source=links, line_width=1.2, line_alpha=0.8, name="links")
    size = float(np.clip(math.sqrt(130_000 / shown.points), 5, 11))
    plot.scatter(
        f"{first}_x", f"{first}_y", source=ColumnDataSource(columns, name="points"), size=size, marker="shape",
        fill_color="fill", fill_alpha="alpha", line_color=None, name="points",
    )  # fmt: skip
    rings = ColumnDataSource({key: [] for key in ("x", "y", "size", "fill")}, name="rings")
    plot.scatter("x", "y", source=rings, size="size", fill_color="fill", line_width=2, name="rings")
    return as_json(bare(plot), "map-plot")


def curve(
    place: str,
    rows: Sequence[dict[str, Any]],
    lines: dict[str, str],
    level: float | None = None,
    share: bool = False,
) -> dict[str, Any]:
    """Numbers of the log over training.

    Args:
        place: the element that it is drawn in.
        rows: of log.jsonl, each with its epoch.
        lines: what each line is called, and its key in a row.
        level: of a dashed line.
        share: whether they are shares, which are shown in percent.
    """
    ends = Range1d(start=0, end=1.03 * max(row["epoch"] for row in rows))
    plot = figure(
        height=190, sizing_mode="stretch_width", tools="", toolbar_location=None, x_range=ends, x_axis_label="epochs"
    )
    for i, (name, key) in enumerate(lines.items()):
        known = [row for row in rows if isinstance(row.get(key), float)]
        columns = {"value": [row[key] for row in known], "epochs": [row["epoch"] for row in known]}
        columns["seconds"] = [row.get("seconds") or 0.0 for row in known]
        source = ColumnDataSource(columns)
        plot.line("epochs", "value", source=source, line_width=2, name=f"line{i}")
        dots = plot.scatter("epochs", "value", source=source, size=6 if len(known) < 60 else 3, line_color=None,
                            name=f"dots{i}")  # fmt: skip
        tips = [
            (name, f"@value{{{'0.0 %' if share else '0.0000'}}}"),
            ("epoch", "@epochs{0.00}"),
            ("seconds", "@seconds{0,0.0}"),
        ]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=tips, mode="vline" if i == 0 else "mouse"))
    if level is not None:
        values = [row[key] for row in rows for key in lines.values() if isinstance(row.get(key), float)]
        add_level(plot, level, values)
    if share:
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
    plot.xgrid.visible = False
    return as_json(bare(plot), place)


def add_level(plot: Any, level: float, values: Sequence[float]) -> None:
    """A dashed line, and an axis that reaches it, which would end with the values."""
    low, high = min(level, *values), max(level, *values)
    margin = 0.06 * (high - low or 1)
    plot.y_range = Range1d(start=low - margin, end=high + margin)
    plot.add_layout(Span(location=level, dimension="width", line_dash="dashed", line_width=1.5, name="level"))


@dataclass(frozen=True)
class Line:
    """Accuracies over something, with their standard deviations where they are means."""

    name: str
    x: Sequence[float]
    shares: Sequence[float]
    sd: Sequence[float] = ()


def accuracies(
    place: str, lines: Sequence[Line], label: str, level: float | None = None, log: bool = False
) -> dict[str, Any]:
    """Lines of accuracies, in percent, over the axis `label`; `level` is that of a dashed line."""
    plot = figure(
        height=230, sizing_mode="stretch_width", tools="", toolbar_location=None, x_axis_label=label,
        x_axis_type="log" if log else "linear",
    )  # fmt: skip
    for i, line in enumerate(lines):
        sd = line.sd or [0.0] * len(line.x)
        low, high = ([share + sign * own for share, own in zip(line.shares, sd, strict=True)] for sign in (-1, 1))
        source = ColumnDataSource({"x": line.x, "value": line.shares, "sd": sd, "low": low, "high": high})
        plot.line("x", "value", source=source, line_width=2, name=f"line{i}")
        plot.segment("x", "low", "x", "high", source=source, line_width=2, line_alpha=0.55, name=f"line{i}")
        dots = plot.scatter("x", "value", source=source, size=7, line_color=None, name=f"dots{i}")
        tips = [(line.name, "@value{0.0 %}" + (" ± @sd{0.0 %}" if line.sd else "")), (label, "@x{0,0}")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    plot.xaxis.ticker = FixedTicker(ticks=sorted({x for line in lines for x in line.x}))
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    if level is not None:
        add_level(plot, level, [share for line in lines for share in line.shares])
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
    plot.xgrid.visible = False
    return as_json(bare(plot), place)


def bare(plot: Any) -> Plot:
    """Without a ground, a frame and a legend of its own: they are the page's."""
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.min_border = 4
    return plot
