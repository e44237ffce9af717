"""The results of a trial as a page and on the terminal: the verdict, a table, the learning curve."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crlf.pipelines.advice import NAMES, Marks, Verdict, curve, more_images
from crlf.pipelines.contestants import Contestant
from crlf.runs.files import write_bytes
from crlf.text import duration
from crlf.visualization.figures.style import NIGHT, PALETTE
from crlf.visualization.report.bars import Bar
from crlf.visualization.report.html import data_uri

CSS = Path(__file__).parent.parent / "visualization" / "report" / "style.css"
COLOURS = {"pixels": "raw", "untrained": "untrained", "model": "taught"}  # of bars; what was trained has the run's own
FREE = {"crops": "crops", "rankme": "RankMe"}  # measures without labels
NEXT = {
    "model": "Use the best as it is",
    **dict.fromkeys(("pixels", "untrained"), "Nothing that was trained is the best. Try again with more time"),
}
"""What the command at the end does, by the kind of the best."""
COLOURED = Markup(
    ":root{{{day}}}@media (prefers-color-scheme:dark){{:root{{{night}}}}}".format(
        **{
            name: "".join(f"--c{k}:{colour};" for k, colour in enumerate(colours))
            for name, colours in (("day", PALETTE), ("night", NIGHT))
        }
    )
)
"""The colours of the bars, by day and by night."""


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


def bars(marks: Marks) -> dict[str, list[Bar]]:
    """The contestants by each measure that decides, the longest bar first; without those of a part of the images."""
    first = next(iter(marks.values()))
    whole = {one: judged for one, judged in marks.items() if one.share == 1}
    return {
        NAMES[name]: sorted(
            (Bar(COLOURS.get(one.kind, "own"), one.name, judged.mean(name), None) for one, judged in whole.items()),
            key=lambda bar: -bar.share,
        )
        for name in first.right
    }


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

    from crlf.visualization.figures.style import styled

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
        css=Markup(CSS.read_text(encoding="utf-8")) + COLOURED,
        bars=bars(marks),
        title=f"Trial of {Path(about['data']).name}",
        about=about,
        found=found,
        more=more_images(marks),
        header=header(marks)[1:],
        rows=list(zip(marks, rows(marks), strict=True)),
        best=found.best,
        next=NEXT.get(found.best.kind, "Train the best for longer"),
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
