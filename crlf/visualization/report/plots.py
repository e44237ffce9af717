"""The interactive plots, by Bokeh: the maps of the embeddings, and the curves of training.

A plot is a dict of JSON that script.js hands to BokehJS. No plot holds code (Bokeh's CustomJS): it would have the page
allow `eval`. Colours come from the page, which knows whether it is night.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, PanTool, Plot, Range1d, ResetTool, WheelZoomTool
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import Resources

from crlf.visualization.figures.style import PALETTE
from crlf.visualization.report.pictures import Shown

SHAPES = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "square_pin", "triangle_pin",
          "circle_dot")  # fmt: skip
"""BokehJS's markers: with ten colours, another pair for each of the first 100 classes."""


@lru_cache(maxsize=1)
def library() -> str:
    """BokehJS, the part that draws plots: 1.3 MB."""
    [source] = Resources(mode="inline", components=["bokeh"]).js_raw[:1]
    return source


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
    zoom = WheelZoomTool()
    plot.add_tools(PanTool(), zoom, ResetTool())
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
    place: str, rows: Sequence[dict[str, Any]], lines: dict[str, str], level: float | None = None
) -> dict[str, Any]:
    """Numbers of the log over training.

    Args:
        place: the element that it is drawn in.
        rows: of log.jsonl, each with its epoch.
        lines: what each line is called, and its key in a row.
        level: of a dashed line.
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
        tips = [(name, "@value{0.0000}"), ("epoch", "@epochs{0.00}"), ("seconds", "@seconds{0,0.0}")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=tips, mode="vline" if i == 0 else "mouse"))
    if level is not None:  # the axis would end with the values, and not show the line
        values = [level, *(row[key] for row in rows for key in lines.values() if isinstance(row.get(key), float))]
        margin = 0.06 * (max(values) - min(values) or 1)
        plot.y_range = Range1d(start=min(values) - margin, end=max(values) + margin)
        plot.add_layout(Span(location=level, dimension="width", line_dash="dashed", line_width=1.5, name="level"))
    plot.xgrid.visible = False
    return as_json(bare(plot), place)


def bare(plot: Any) -> Plot:
    """Without a ground, a frame and a legend of its own: they are the page's."""
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.min_border = 4
    return plot
