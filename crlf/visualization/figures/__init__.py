"""What a run looks like: one function a figure, each from the files of the run alone.

A figure is a matplotlib `Figure` without pyplot: no window, no global state. Its title carries the run's own numbers,
its caption says how to read it, and both together are the description that the PNG holds for whoever cannot see it.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from crlf.runs.files import write_bytes
from crlf.runs.run import Run
from crlf.text import duration, say
from crlf.visualization.figures.confusion_matrix import confusion_matrix
from crlf.visualization.figures.curves import health, loss_curve
from crlf.visualization.figures.embedding_maps import pca_embedding, tsne_embedding
from crlf.visualization.figures.run_arrays import NotDrawn
from crlf.visualization.figures.style import on_paper, styled
from crlf.visualization.figures.views_and_filters import filters, views

FIGURES: dict[str, Callable[[Run], Figure]] = {
    "loss_curve": loss_curve,
    "health": health,
    "confusion_matrix": confusion_matrix,
    "pca_embedding": pca_embedding,
    "tsne_embedding": tsne_embedding,
    "views": views,
    "filters": filters,
}


def draw(
    run: Run | str | Path, *, format: Literal["both", "png", "pdf"] = "both", columns: Literal[1, 2] = 2
) -> list[Path]:
    """Draw every figure of a run whose inputs are there: `<name>.png` for the screen, `<name>.pdf` for papers.

    Args:
        format: the kind of file: png, pdf or both.
        columns: the width of a PDF, in columns of a paper: 1 is 3.25 inches, 2 are 6.75. Its letters have 8 points.
            Title and caption stand in its metadata only.

    Returns:
        The files that were written. Why a figure is left out is said on stderr.

    Raises:
        InputError: an input is damaged.
    """
    run = Run.open(run)
    start = time.perf_counter()
    written = []
    for name, make in FIGURES.items():
        try:
            pictures = [
                (kind, render(make, run, columns)) for kind, render in RENDER.items() if format in (kind, "both")
            ]
        except NotDrawn as reason:
            print(f"{name} is not drawn: {reason}", file=sys.stderr)
            continue
        for kind, picture in pictures:
            written.append(run.file(f"{name}.{kind}"))
            write_bytes(written[-1], picture)
    seconds = time.perf_counter() - start
    run.update_scores(draw_seconds=seconds)
    if written:
        drawn = list(dict.fromkeys(path.stem for path in written))
        where = f"{len(written)} files in {str(run.path)!r}"
        say(f"{len(drawn)} figures in {duration(seconds)}, {where}: {', '.join(drawn)}")
    return written


def pdf(figure: Figure) -> bytes:
    """The figure as vector PDF; its title and caption are the document's title and subject."""
    text = {"Title": figure.get_suptitle(), "Subject": " ".join(figure.get_supxlabel().split())}
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="pdf", metadata=text | {"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


def for_paper(make: Callable[[Run], Figure], run: Run, columns: int) -> bytes:
    with on_paper(columns):
        return pdf(make(run))


RENDER: dict[str, Callable[[Callable[[Run], Figure], Run, int], bytes]] = {
    "png": lambda make, run, columns: png(make(run)),
    "pdf": for_paper,
}


def png(figure: Figure) -> bytes:
    """The figure as PNG; its title and caption are the text chunk `Description`."""
    title, caption = figure.get_suptitle(), " ".join(figure.get_supxlabel().split())
    text = {"Title": title, "Description": f"{title}. {caption}", "Software": None}
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", metadata=text)
    return buffer.getvalue()
