"""The search for a recipe, on held-out training images: what was not tried together, by successive halving.

Candidates are drawn at random from the choices below, beside the recipe as it is. All run a tenth of the way; the best
third of them three tenths; the best third of those the whole. A longer run starts anew: its schedule is another.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bench.ablation import norm_before_pool, whiten
from bench.gpu_program import many
from bench.gpu_program.context import Context
from bench.gpu_program.many import Job
from crlf.augmentation import ViewSettings
from crlf.data import ImageSet, load
from crlf.encoders import CNN, ENCODERS
from crlf.methods.simclr import SimCLRSettings
from crlf.optim import OptimSettings
from crlf.recipe import RECIPES, Recipe

SHARES = (0.1, 0.3, 1.0)  # of the longest run, a rung each
KEPT = 3  # one of so many goes on
SEEDS = 3  # of those on the last rung
TABLE = "cnn"  # of the results
CHOICES: dict[str, tuple[Any, ...]] = {
    "encoder": ("cnn", "cnn norm", "cnn white", "cnn norm white"),
    "hidden": (256, 1024),
    "resolution": (0.5, 0.625, 0.75),
    "batch_size": (64, 128, 256),
    "lr": (0.02, 0.04),
    "weight_decay": (0.0, 0.1),
    "views": (2, 4, 8),
    "temperature": (0.1, 0.2),
    "crop_min": (0.1, 0.2),
}


def measure(c: Context) -> None:
    setup()
    train, held = (many.on(c.device, part) for part in parted(c.sizes.data, c.sizes.held_out, c.sizes.subset))
    halve(c, train, held, max(2.0, c.clock.left() - 2))


def parted(data: str, count: int, subset: int = 0) -> tuple[ImageSet, ImageSet]:
    """The training images of a data set, without `count` of them, and these: to learn from, and to choose by."""
    whole = load(data, None, None, subset)[0]
    assert whole.labels is not None
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42))
    rest, held = (
        dataclasses.replace(
            whole, images=whole.images[r], labels=whole.labels[r], ids=[whole.ids[i] for i in r.tolist()]
        )
        for r in (order[count:], order[:count])
    )
    return rest, held


def setup() -> None:
    """Make the networks of the search known by name."""
    for norm, white, deep in itertools.product((False, True), repeat=3):
        name = "cnn" + " norm" * norm + " white" * white + " deep" * deep
        if name not in ENCODERS:
            ENCODERS[name] = functools.partial(variant, norm, white, deep)


def variant(norm: bool, white: bool, deep: bool, channels: int, size: int, regions: int) -> nn.Module:
    """The light CNN, with norm and activation before the pool, a whitened first convolution, and a convolution more
    in the last stage, or not."""
    network = CNN(channels, regions)
    if norm:
        for i, stage in enumerate(network.stages):
            network.stages[i] = norm_before_pool(i, stage)
    if deep:
        last: nn.Sequential = network.stages[-1]  # type: ignore[assignment]
        width = last[0].out_channels
        last.extend([nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()])  # type: ignore[arg-type]
    return whiten(network) if white else network


def candidates(count: int, changes: dict[str, Any]) -> dict[str, Recipe]:
    """Recipes by what they choose: the default as it is, and so many others drawn at random."""
    draw, found = random.Random(0), {"as it is": dataclasses.replace(RECIPES["default"], **changes)}
    while len(found) < 1 + count:
        choice = {name: draw.choice(values) for name, values in CHOICES.items()}
        key = ", ".join(f"{name} {value}" for name, value in choice.items())
        found[key] = dataclasses.replace(recipe_of(choice), **changes)
    return found


def recipe_of(choice: dict[str, Any]) -> Recipe:
    base = RECIPES["default"]
    return dataclasses.replace(
        base,
        encoder=choice["encoder"],
        batch_size=choice["batch_size"],
        views=choice["views"],
        augmentation=dataclasses.replace(base.augmentation, **pick(choice, ViewSettings)),
        optim=dataclasses.replace(base.optim, **pick(choice, OptimSettings)),
        head=dataclasses.replace(base.head, **pick(choice, SimCLRSettings)),
    )


def pick(choice: dict[str, Any], settings: type) -> dict[str, Any]:
    """The choices that are settings of this section."""
    names = {f.name for f in dataclasses.fields(settings)}
    return {name: value for name, value in choice.items() if name in names}


def halve(c: Context, train: ImageSet, held: ImageSet, seconds: float) -> None:
    """Successive halving within so many seconds."""
    end = time.monotonic() + seconds
    recipes = {k: graphs(c, r) for k, r in candidates(c.sizes.candidates, small(c)).items()}
    probe = Job(recipes["as it is"], c.sizes.pflop * SHARES[0], "")
    rows = list(many.race(probe, train, held, c.device, steps=100 if c.device.type == "cuda" else 2))
    for row in rows:
        c.emit({"table": "race", **row})
    usable = [row for row in rows if row.get("compile") == probe.recipe.compile]
    width = max(usable, key=lambda row: row["steps_a_second"])["width"]
    alive = list(recipes)
    for rung, share in enumerate(SHARES):
        seeds = range(SEEDS if share == 1 else 1)
        jobs = [Job(dataclasses.replace(recipes[k], seed=s), c.sizes.pflop * share, k) for s in seeds for k in alive]
        found = scored(c, rung, jobs, width, train, held, end)
        means = {k: statistics.mean(v for name, v in found if name == k) for k in alive if k in dict(found)}
        alive = sorted(means, key=means.__getitem__, reverse=True)[: max(1, len(alive) // KEPT)]
        if not alive or time.monotonic() > end:
            return


def small(c: Context) -> dict[str, Any]:
    return {"data": c.sizes.data, "subset": 0, **c.sizes.small}


def graphs(c: Context, recipe: Recipe) -> Recipe:
    """Replayed as a graph, where the smoke test could."""
    works = any(row.get("compile") == "graphs" and "loss" in row for row in c.rows("smoke"))
    return dataclasses.replace(recipe, compile="graphs" if works and c.device.type == "cuda" else "none")


def scored(
    c: Context, rung: int, jobs: Sequence[Job], width: int, train: ImageSet, held: ImageSet, end: float
) -> list[tuple[str, float]]:
    """The kNN accuracy of each job, by its key: of an earlier call where there is one, else of a run now."""
    known = {(row["rung"], row["choice"], row["seed"]): row["knn_%"] for row in c.rows("search", TABLE)}
    found = [(j.key, known[r]) for j in jobs if (r := (rung, j.key, j.recipe.seed)) in known]
    missing = [j for j in jobs if (rung, j.key, j.recipe.seed) not in known]
    for job, row in run_in(missing, width, train, held, c.device):
        c.emit({"table": TABLE, "rung": rung, "pflop": job.pflop, "seed": job.recipe.seed, **row, "choice": job.key})
        found.append((job.key, row["knn_%"]))
        if time.monotonic() > end:
            break
    return found


def run_in(
    jobs: Sequence[Job], width: int, train: ImageSet, held: ImageSet, device: torch.device
) -> Iterator[tuple[Job, dict[str, Any]]]:
    if width > 1:
        return many.in_streams(jobs, train, held, device, width)
    return many.in_turn(jobs, train, held, device)
