"""The five lines that end a run: what it learned, whether that paid, where to look, how to search, what to do next."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from crlf.data.files.class_folders import MANY
from crlf.data.files.folder import LIST
from crlf.data.lookup import path_of
from crlf.runs.payoff import payoff
from crlf.runs.run import RECIPE, REPORT, Run
from crlf.runtime import terminal
from crlf.text import percent

WIDTH = 14  # characters before a line, as in the table of crlf.visualization.summary
SMALL = 64  # pixels per side; at this size, more steps fit into a minute
LONGER = 3  # factor of the advised training time
ENOUGH = 20  # minutes or epochs, at least, of an advised run


def closing(run: Run) -> str:
    """The lines. Sentences are broken at the width of the terminal; commands are not, so that they can be copied."""
    scores = run.scores
    sentences = {"it learned": learned(run, scores), "did it pay?": paid(run, scores)}
    others = {"look at": word(run.file(REPORT)), "search": search_command(run), "next": next_step(run, scores)}
    width = terminal.columns() if sys.stdout.isatty() else sys.maxsize
    rows = [
        textwrap.fill(
            text, width, initial_indent=f"{name:<{WIDTH}}", subsequent_indent=" " * WIDTH,
            break_long_words=False, break_on_hyphens=False,
        )
        for name, text in sentences.items()
    ]  # fmt: skip
    return "\n".join([*rows, *(f"{name:<{WIDTH}}{text}" for name, text in others.items())])


def learned(run: Run, scores: dict[str, Any]) -> str:
    """The accuracies of the embeddings, with their protocols."""
    of = "the images" if run.cross_validated else "the test images"
    told = {
        "linear_accuracy": f"a linear classifier on the embeddings is right on {{}} of {of}",
        "knn_accuracy": "the nearest neighbours on {}",
    }
    if run.unlabelled:
        told = {"crops_accuracy": "a crop of an image finds it among the others in {} of the cases"}
    found = [text.format(percent(scores[name])) for name, text in told.items() if name in scores]
    what = ", ".join(found) or "not measured: `crlf probe` does"
    if found and "chance" in scores and not run.unlabelled:
        what += f" (chance {percent(scores['chance'])})"
    readout = scores.get("protocol", {}).get("embedding")
    return what + (f". Embeddings: {readout}." if readout else ".")


def paid(run: Run, scores: dict[str, Any]) -> str:
    """Whether training was worth it, or the reason why that is not known."""
    if found := payoff(scores):
        return f"{found.what}: {found.numbers}."
    why = str(scores.get("protocol", {}).get("crops" if run.unlabelled else "untrained", "`crlf probe` does"))
    return f"not measured: {why.removeprefix('not measured: ')}."


def search_command(run: Run) -> str:
    """A search with one of the run's images, if they are files."""
    image = an_image(run)
    return f"crlf search {word(run.path)} {word(image) if image else 'IMAGE'}"


def an_image(run: Run) -> str | None:
    """The first file among the run's images that can be written on one line."""
    source = Path(str(run.settings.get("data", "")))
    if not (source.is_dir() or source.suffix.lower() == LIST):
        return None
    names = run.ids("test") or run.ids("train") or []
    paths = (path_of(source, name) for name in names if name.isprintable())
    return next((path for path in paths if os.path.isfile(path)), None)


def next_step(run: Run, scores: dict[str, Any]) -> str:
    """Advice on what to do next with the encoder or the images."""
    found = payoff(scores)
    if found is None:
        return f"ask what can be better: crlf doctor {word(run.path)}"
    if not found.paid:
        return longer(run, scores)
    if not run.unlabelled and len(run.ids("train") or []) < MANY:
        data = word(str(run.settings.get("data")))
        return f"make a classifier, of few labels: crlf finetune {word(run.path)} {data}"
    return f"use it elsewhere: crlf export {word(run.path)}"


def longer(run: Run, scores: dict[str, Any]) -> str:
    """The command that gives the run more steps."""
    settings, shape = run.settings, scores.get("image_shape")
    time = "minutes" if settings.get("minutes") else "epochs"
    flags = f"--{time} {max(ENOUGH, LONGER * settings.get(time, 1)):g}"
    images = settings.get("images")
    smaller = isinstance(images, dict) and isinstance(shape, list) and min(shape[1:], default=0) > SMALL
    if smaller and an_image(run):
        flags += f" --image-size {SMALL}"
    how = "train longer, on smaller images" if "image-size" in flags else "train longer"
    return f"{how}: crlf run --recipe {word(run.file(RECIPE))} {flags} --out {word(f'{run.path}-longer')}"


def word(path: str | os.PathLike[str]) -> str:
    """A path quoted for the shell, relative to the current folder if it is inside."""
    here = os.path.relpath(path)
    text = os.fspath(path) if here.startswith(os.pardir) else here
    return shlex.quote(os.path.join(os.curdir, text) if text.startswith("-") else text)
