"""How to go on from ImageNet's weights without labels: what gains, and what loses.

    python -m bench init-ablation --sets foods --changes "frozen; base; start.norms=keep optim.lr=3e-5; method=byol"

The base is SimCLR by AdamW at 1e-4 from EfficientNet-Lite0, images of 128 px and two views of 96 px; batch norms
follow the batches, and all learns from the first step. Every run sees the same number of views, so that a machine that
others use too says the same as an idle one. Each is also read with its weights mixed with those that it started from
(WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): mix 0 is the start, which is not trained, and 1 the end. A row is
measured once.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.photos import results
from bench.photos.ablation import flop, probes, train
from bench.photos.contestants import nested
from bench.photos.sets import SETS, images
from bench.timing import mean_and_spread
from bench.transfer.main import from_model
from crlf import encoders
from crlf.data import ImageSet
from crlf.embedding.embed import embed_images
from crlf.errors import unknown
from crlf.recipe import Recipe, settled
from crlf.runtime.allocator import keep_freed_memory
from crlf.text import say
from crlf.training.prepare import of_weights
from crlf.training.weights.matching import load
from crlf.training.weights.sources import read

ROWS = Path(__file__).parent.parent / "init-ablation-rows.jsonl"
BASE, FROZEN = "base", "frozen"
SETTINGS: dict[str, Any] = {
    "data": "photographs/",
    "batch_size": 64,
    "views": 2,
    "optim": {"optimizer": "adamw", "lr": 1e-4},
    "augmentation": {"resolution": 0.75},
    "start": {"norms": "follow", "mix": 1.0, "head_first": 0.0},
}
VIEWS = 10_000
MIXES = (0.25, 0.5, 0.75, 1.0)


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them."""
    found = dict(one)
    for key, value in other.items():
        found[key] = merged(found.get(key, {}), value) if isinstance(value, dict) else value
    return found


def recipe_of(change: str, seed: int) -> Recipe:
    """The recipe of a change, as its weights have it."""
    words = [] if change in (BASE, FROZEN) else change.split()
    recipe = Recipe.from_dict({**from_model(**merged(SETTINGS, nested(words))), "seed": seed})
    return of_weights(recipe, read(recipe.start.init))


def mixed(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights on the way from one to the other."""
    return {k: torch.lerp(start[k], v, share) if v.is_floating_point() else v for k, v in end.items()}


def measure(name: str, change: str, seed: int, views: int) -> list[dict[str, Any]]:
    """The rows of a change: one for each mix, or one of the weights as they come."""
    recipe = recipe_of(change, seed)
    shown = images(name, recipe.images.image_size)
    data = ImageSet(shown.pixels, None, (), shown.names)
    recipe, weights = settled(recipe).resolved(data), read(recipe.start.init)
    if change == FROZEN:
        network = encoders.build(recipe.encoder, 3, recipe.images.image_size)
        load(network, weights, recipe.start)
        found, about = {0.0: network.state_dict()}, {"steps": 0}
    else:
        work = views * 3 * flop(recipe, data) / 1e12
        before, network, about = train(recipe, data, work, weights)
        start, end = before.state_dict(), copy.deepcopy(network.state_dict())
        found = {share: mixed(start, end, share) for share in MIXES}
    rows = []
    for share, state in found.items():
        correct = probes(embedded(network, state, recipe, name), shown.labels, seed)
        means = {key: round(results.mean(getattr(correct, key)).points, 2) for key in results.PROBES}
        rows.append({"set": name, "change": change, "mix": share, "seed": seed, "views": views, **about, **means})
        say(f"{name}, {change}, mix {share}: {means}, mean {sum(means.values()) / len(means):.1f}; {about}")
    return rows


def embedded(network: nn.Module, state: Mapping[str, Tensor], recipe: Recipe, name: str) -> np.ndarray:
    """The embeddings of all photographs with these weights: float32 (N, D)."""
    network.load_state_dict(state)
    frozen = encoders.Frozen(network, recipe.embedding.mirror)
    return embed_images(frozen, images(name, recipe.images.image_size).pixels, recipe.normalisation, 50)


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set, change and mix: the mean over the seeds, with the standard deviation of two or more."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["change"], row["mix"]), []).append(row)
    found = []
    for (name, change, mix), alike in groups.items():
        columns = {what: [row[key] for row in alike] for key, what in results.PROBES.items()}
        columns["mean"] = [sum(values) / len(values) for values in zip(*columns.values(), strict=True)]
        cells = {what: mean_and_spread(values) for what, values in columns.items()}
        found.append({"set": name, "change": change, "mix": mix, "seeds": len(alike), **cells})
    return found


def main(argv: Sequence[str]) -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench init-ablation", description="How to go on from trained weights without labels."
    )
    parser.add_argument("--sets", default="foods")
    parser.add_argument("--changes", default="", help=f"with semicolons between; {BASE} is none, {FROZEN} no training")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--views", type=int, default=VIEWS, help="that a run sees")
    parser.add_argument("--rows", type=Path, default=ROWS, help="a file of JSON lines to go on from")
    parser.add_argument("--record", action="store_true", help="append the table to bench/records.jsonl")
    asked = parser.parse_args(argv)
    keep_freed_memory()  # as the commands of crlf do
    if wrong := [name for name in asked.sets.split(",") if name not in SETS]:
        raise unknown("set of photographs", wrong[0], SETS)
    done = {(row["set"], row["change"], row["seed"], row["views"]) for row in results.read(asked.rows)}
    for seed in map(int, asked.seeds.split(",")):
        for change in filter(None, (one.strip() for one in asked.changes.split(";"))):
            for name in asked.sets.split(","):
                if (name, change, seed, asked.views) not in done:
                    for row in measure(name, change, seed, asked.views):
                        results.append(asked.rows, row)
    rows = table(results.read(asked.rows))
    print(results.table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]) if rows else "no rows")
    if asked.record:
        record(rows)
    return 0


def record(rows: Sequence[dict[str, Any]]) -> None:
    """Append the table to the records."""
    from bench import __main__ as bench

    bench.keep("init-ablation", list(rows))
