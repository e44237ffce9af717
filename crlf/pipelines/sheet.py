"""The results of a trial as a page and on the terminal: the verdict, a table, the learning curve."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from crlf.pipelines.advice import NAMES, Marks, Verdict, curve, more_images
from crlf.pipelines.contestants import Contestant
from crlf.runs.files import write_bytes
from crlf.text import duration
from crlf.visualization.report.html import data_uri

CSS = Path(__file__).parent.parent / "visualization" / "report" / "style.css"
FREE = {"crops": "crops", "rankme": "RankMe"}  # measures without labels


@cache
def templates() -> Environment:
    return Environment(
        loader=PackageLoader("crlf.pipelines"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def header(marks: Marks) -> list[str]:
    first = next(iter(marks.values()))
    free = [text for name, text in FREE.items() if name in first.measures]
    return ["", *(NAMES[name] if name != "crops" else "crops" for name in first.right), *free]


def rows(marks: Marks) -> list[list[str]]:
    """One row per contestant: accuracies in %, and the measures that need no labels."""
    return [
        [
            one.name,
            *(f"{100 * judged.mean(name):.1f}" for name in judged.right),
            *(free(name, judged.measures[name]) for name in FREE if name in judged.measures),
        ]
        for one, judged in marks.items()
    ]


def free(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "rankme" else f"{100 * value:.1f}"


def table(marks: Marks) -> str:
    """The table for the terminal."""
    lines = [header(marks), *rows(marks)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def picture(marks: Marks) -> bytes:
    """The learning curve as a PNG."""
    from matplotlib.figure import Figure

    from crlf.visualization.figures.style import PALETTE, styled

    points = curve(marks)
    with styled():
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, name in zip(PALETTE, points[0][1].right, strict=False):
            shares, values = [100 * share for share, _ in points], [100 * judged.mean(name) for _, judged in points]
            axes.plot(shares, values, "o-", color=colour, label=NAMES[name])
        axes.set_xscale("log")
        axes.set_xticks([100 * share for share, _ in points], [f"{share:.0%}" for share, _ in points])
        axes.minorticks_off()
        axes.set_xlabel("share of the images used for training, in the same time")
        axes.set_ylabel("accuracy, %")
        axes.grid(True, axis="y")
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write(path: Path, marks: Marks, found: Verdict, about: dict[str, Any], folder: Path) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        marks: the scores of the contestants.
        found: the verdict.
        about: `seconds`, the training times by contestant, and `images`, `classes`, `tested`, `minutes`, `data`.
        folder: the folder of the trial.
    """
    html = templates().get_template("trial.html").render(
        css=CSS.read_text(encoding="utf-8"),
        title=f"Trial of {Path(about['data']).name}",
        about=about,
        found=found,
        more=more_images(marks),
        header=header(marks)[1:],
        rows=list(zip(marks, rows(marks), strict=True)),
        best=found.best,
        command=go_on(found.best, folder, about["data"]),
        curve=data_uri("image/png", picture(marks)) if len(curve(marks)) > 1 else "",
        labelled="crops" not in next(iter(marks.values())).right,
    )  # fmt: skip
    write_bytes(path, html.encode("utf-8"))


def go_on(best: Contestant, folder: Path, data: str) -> str:
    """The command to run next."""
    run = shlex.quote(str(folder / best.folder))
    if best.kind == "model":
        return f"crlf embed {run}"
    if best.trained:
        return f"crlf run --recipe {shlex.quote(str(folder / best.folder / 'recipe.json'))} --minutes 60 --out RUN"
    return f"crlf trial {shlex.quote(data)} --minutes 60 --out {shlex.quote(f'{folder}-longer')}"


def time_of(seconds: float) -> str:
    return duration(seconds) if seconds else "–"


def closing(marks: Marks, found: Verdict, page: Path, folder: Path, data: str) -> Sequence[str]:
    """The last lines of output."""
    return [
        f"{found.what} {found.why}",
        *([more] if (more := more_images(marks)) else []),
        f"page: {str(page)!r}",
        f"next: {go_on(found.best, folder, data)}",
    ]
