"""A picture of images with their nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath

from crlf.visualization.figures import png, styled

ACROSS = 10  # neighbours per line
TILE, MARGIN = 1.15, 0.1  # inches
LETTERS, SIZE = 16, 7.5  # characters per line of a caption, and its font size
FRAME, SOFT = "#3d49c2", "#57606a"


@dataclass(frozen=True, eq=False)
class Tile:
    """An image with its caption."""

    image: np.ndarray | None
    """uint8 (H, W, 3), or None if it was not found."""
    lines: tuple[str, ...]


def gallery(rows: Sequence[tuple[Tile, Sequence[Tile]]]) -> bytes:
    """A PNG with a line per image: the framed image with its neighbours to the right, ten per line."""
    lines = [
        (query if start == 0 else None, near[start : start + ACROSS])
        for query, near in rows
        for start in range(0, max(len(near), 1), ACROSS)
    ]
    across = 1 + max(len(near) for _, near in lines)
    with styled():
        size = (max(across, 5) * TILE, 0.75 + len(lines) * (TILE + 0.42))
        margin = MARGIN / size[0]
        layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06, rect=(margin, 0, 1 - 2 * margin, 1))
        figure = Figure(figsize=size, layout=layout)
        figure.suptitle("Nearest images by cosine similarity", x=1.4 * margin, ha="left", size=12.5)
        caption = "Left, framed: the image that was searched with."
        figure.supxlabel(caption, x=1.4 * margin, ha="left", size=9, color=SOFT)
        axes = figure.subplots(len(lines), across, squeeze=False)
        for own, (query, near) in zip(axes, lines, strict=True):
            tiles = [query, *near, *[None] * (across - 1 - len(near))]
            for place, tile in zip(own, tiles, strict=True):
                draw_tile(place, tile, framed=tile is query)
        return png(figure)


def draw_tile(axes, tile: Tile | None, framed: bool) -> None:  # type: ignore[no-untyped-def]
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(framed and tile is not None)
    axes.spines[:].set(color=FRAME, linewidth=2.5)
    axes.set_box_aspect(1)
    if tile is None:
        axes.set_visible(False)
        return
    if tile.image is None:
        axes.text(0.5, 0.5, "not found", ha="center", va="center", transform=axes.transAxes, size=8, color=SOFT)
        axes.set_facecolor("#eef1f4")
    else:
        axes.imshow(tile.image, interpolation="nearest" if max(tile.image.shape) < 100 else None)
    axes.set_xlabel("\n".join(short(line) for line in tile.lines), size=SIZE, labelpad=3)


def short(line: str) -> str:
    """Shorten a line to the width of a picture; the end is kept, since it distinguishes files."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    ends = ("…" + line[1 - letters :] for letters in range(LETTERS, 2, -1))
    found = (text for text in (line, *ends) if len(text) <= LETTERS and wide(text) <= 0.9 * 72 * TILE)
    return next(found, line[-2:])


def wide(line: str) -> float:
    """The width of a line below a picture, in points."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        return float(TextPath((0, 0), line, size=SIZE).get_extents().width) if line.strip() else 0.0
