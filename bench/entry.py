"""A row for the leaderboard of CIFAR-10: `python -m bench leaderboard RUN ...` measures runs again and adds it.

The runs are one recipe with different seeds. Their embeddings are made again from their encoders, and both readouts are
probed: as the recipe reads the encoder, and plainly (`crlf.evaluation.plain`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import bench.__main__ as program
import crlf
from bench import readme
from bench.leaderboard import FIGURES, NAME
from bench.tables import columns
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.recipe import Recipe

DATA = "cifar10"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m bench {NAME}", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of one recipe, each with its own seed")
    parser.add_argument("--who", default="CRLF", help="a name for the row, such as yours")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(argv)
    row = measure([crlf.Run.open(run) for run in asked.runs], asked.device)
    program.keep(NAME, [{"who": asked.who, **row}])
    readme.write(program.RECORDS)
    print(columns([{"who": asked.who, **row}], hidden=("protocol",)))
    return 0


def measure(runs: Sequence[crlf.Run], device: str = "auto") -> dict[str, Any]:
    """Embed and probe each run again: a row with lists over the seeds.

    Raises:
        InputError: the runs differ in more than the seed, or do not belong on the leaderboard.
    """
    recipe = require_alike(runs)
    found = []
    for run in runs:
        crlf.embed(run, device=device)
        crlf.probe(run, probes="linear,knn,plain", device=device)
        found.append(run.scores)
    return {
        "method": METHODS[recipe.method].title,
        "encoder": recipe.encoder,
        "seeds": [run.recipe.seed for run in runs],
        **{key: [scores[key] for scores in found] for key in ("epochs", "views_seen", "pflop", "train_seconds")},
        **{key: [scores[key] for scores in found] for key in FIGURES.values()},
        "hardware": ", ".join(dict.fromkeys(scores["device"] for scores in found)),
        "protocol": found[0]["protocol"]["embedding"],
    }


def require_alike(runs: Sequence[crlf.Run]) -> Recipe:
    """The recipe of all runs. Raises InputError if they may not stand in one row, or not on the leaderboard."""
    first = runs[0].recipe
    seeds = [run.recipe.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"the runs of a row must have different seeds, not {', '.join(map(str, seeds))}")
    for run in runs:
        recipe, path = run.recipe, str(run.path)
        if replace(recipe, seed=first.seed) != first:
            raise InputError(f"run {path!r} must have the recipe of {str(runs[0].path)!r}, apart from the seed")
        if recipe.data != DATA or recipe.subset:
            what = f"the first {recipe.subset:,} images of {recipe.data!r}" if recipe.subset else repr(recipe.data)
            raise InputError(f"run {path!r} must have learned from all training images of {DATA!r}, not from {what}")
        if issubclass(METHODS[recipe.method], SupervisedMethod):
            raise InputError(f"run {path!r} must have learned without labels, but {recipe.method!r} uses them")
        if recipe.start.init:
            raise InputError(f"run {path!r} must begin from random weights, not from {recipe.start.init!r}")
        if "pflop" not in run.scores:
            raise InputError(f"run {path!r} is not trained")
    return first
