"""The style of all figures: distinguishable colours, fonts, and the sheet that a figure is drawn on."""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

# Ten colours whose nearest two are 0.13 apart in OKLab, also as seen without red or green cones (matplotlib's tab10:
# 0.01; petroff10: 0.06; Tol's muted: 0.05). Found by search among colours that stand out from white; a test holds it.
PALETTE = (
    *("#3d49c2", "#e77900", "#00b692", "#920c00", "#92cee7"),
    *("#6d316d", "#e7c249", "#1886aa", "#aa92ff", "#9e6155"),
)
# The same ten by night, on #161b22: 0.11 apart, and 0.3 from the ground. Found and held as the ones by day.
NIGHT = (
    *("#8c71ff", "#eaa12d", "#3ed1a5", "#da4a0d", "#b6eef8"),
    *("#ba88ce", "#f3ee96", "#135fbc", "#cbb6ff", "#8b7172"),
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


WIDTHS = {1: 3.25, 2: 6.75}  # inches of one and two columns at conferences
COLUMNS: ContextVar[int] = ContextVar(
    "COLUMNS", default=0
)  # columns of the paper that a figure is for; 0 for the screen


@contextlib.contextmanager
def on_paper(columns: int) -> Iterator[None]:
    """Make figures within this block as wide as one or two columns of a paper, with 8-point letters and no title."""
    token = COLUMNS.set(columns)
    try:
        yield
    finally:
        COLUMNS.reset(token)


def narrow() -> bool:
    """Whether the figure is for one column of a paper."""
    return COLUMNS.get() == 1


def points(size: float) -> float:
    """The font size, in points, that stands for this size on the screen."""
    return size * (0.84 if COLUMNS.get() else 1)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in this style, whatever the user's own style is; a letter that the font lacks becomes a box."""
    letters = {"font.size": points(STYLE["font.size"]), "pdf.fonttype": 42}  # text in a PDF stays text
    with style.context(["default", STYLE | letters]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def look(k: int) -> tuple[str, str]:
    """The colour and the marker of class k; the first 100 pairs differ."""
    return PALETTE[k % 10], MARKERS[(k + k // 10) % 10]


def sheet(size: tuple[float, float], title: str, caption: str) -> Figure:
    """An empty figure of this size in inches, with its title at the top and its caption at the bottom.

    On paper the width is a column's or two's, and title and caption, which a paper sets itself, are not drawn.
    """
    if columns := COLUMNS.get():
        return paper(
            WIDTHS[columns], size[1] * WIDTHS[columns] / size[0] * (1.3 if columns == 1 else 1), title, caption
        )
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    scale = max(1.0, size[0] / 8)  # a page shows all figures in one width
    heading = figure.suptitle(title, x=0.012, ha="left", size=12.5 * scale)
    heading.set_fontsize(12.5 * scale * min(1, 0.97 * figure.bbox.width / heading.get_window_extent().width))
    foot = figure.supxlabel(caption.strip(), x=0.012, ha="left", color=SOFT, size=9 * scale)
    wrap(foot, 0.97 * figure.bbox.width)
    return figure


def wrap(text: Text, wide: float) -> None:
    """Break a text into the longest lines of at most this width in pixels, for any letters."""
    whole = text.get_text()
    for letters in range(int(wide / 4), 20, -2):
        text.set_text(textwrap.fill(whole, letters))
        if text.get_window_extent().width <= wide:
            return


def paper(wide: float, high: float, title: str, caption: str) -> Figure:
    figure = Figure(figsize=(wide, high), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    FigureCanvasAgg(figure)
    for text in (figure.suptitle(title), figure.supxlabel(caption.strip())):
        text.set(visible=False, in_layout=False)
    return figure


def tag(recipe: dict[str, Any]) -> str:
    """A short description of a run."""
    long = "{minutes:g} minutes" if recipe.get("minutes") else "epochs {epochs}"  # minutes set aside the epochs
    words = f"Run: {{method}}, encoder {{encoder}}, {long}, seed {{seed}}."
    return words.format_map(defaultdict(lambda: "?", recipe))
