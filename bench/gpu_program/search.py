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
import traceback
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
OF_CNN = 0.45  # of the time
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "cnn": {
        "encoder": ("cnn", "cnn norm", "cnn white", "cnn norm white"),
        "hidden": (256, 1024),
        "resolution": (0.5, 0.625, 0.75),
        "batch_size": (64, 128, 256),
        "lr": (0.02, 0.04),
        "weight_decay": (0.0, 0.1),
        "views": (2, 4, 8),
        "temperature": (0.1, 0.2),
        "crop_min": (0.1, 0.2),
    },
    "resnet18": {
        "hidden": (512, 2048),
        "resolution": (0.5, 0.75, 1.0),
        "batch_size": (256, 512, 1024),
        "lr": (0.01, 0.02, 0.04),
        "weight_decay": (0.0, 0.01, 0.1),
        "views": (2, 4, 8),
        "temperature": (0.1, 0.2, 0.5),
        "crop_min": (0.08, 0.2),
    },
}
BASES = {"cnn": "default", "resnet18": "speedrun-knn90"}


def measure(c: Context) -> None:
    setup()
    train, held = (many.on(c.device, part) for part in parted(c.sizes.data, c.sizes.held_out, c.sizes.subset))
    whole = c.clock.left()
    for encoder, longest in zip(CHOICES, c.sizes.pflop, strict=True):
        until = c.clock.left() - (whole * OF_CNN if encoder == "cnn" else c.clock.left() - 2)
        try:
            halve(c, encoder, longest, train, held, max(2.0, until))
        except Exception as error:  # the other network's search goes on
            traceback.print_exc()
            c.emit(
                {"table": f"{encoder} failed", "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            )


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
    for norm, white in itertools.product((False, True), repeat=2):
        name = "cnn" + " norm" * norm + " white" * white
        if name not in ENCODERS:
            ENCODERS[name] = functools.partial(variant, norm, white)


def variant(norm: bool, white: bool, channels: int, size: int, regions: int) -> nn.Module:
    """The light CNN, with norm and activation before the pool, and a whitened first convolution, or not."""
    network = CNN(channels, regions)
    if norm:
        for i, stage in enumerate(network.stages):
            network.stages[i] = norm_before_pool(i, stage)
    return whiten(network) if white else network


def candidates(encoder: str, count: int, changes: dict[str, Any]) -> dict[str, Recipe]:
    """Recipes by what they choose: the base as it is, and so many others drawn at random."""
    draw, found = random.Random(0), {"as it is": dataclasses.replace(RECIPES[BASES[encoder]], **changes)}
    while len(found) < 1 + count:
        choice = {name: draw.choice(values) for name, values in CHOICES[encoder].items()}
        key = ", ".join(f"{name} {value}" for name, value in choice.items())
        found[key] = dataclasses.replace(recipe_of(encoder, choice), **changes)
    return found


def recipe_of(encoder: str, choice: dict[str, Any]) -> Recipe:
    base = RECIPES[BASES[encoder]]
    return dataclasses.replace(
        base,
        encoder=choice.get("encoder", base.encoder),
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


def halve(c: Context, encoder: str, longest: float, train: ImageSet, held: ImageSet, seconds: float) -> None:
    """Successive halving within so many seconds."""
    end = time.monotonic() + seconds
    count = c.sizes.candidates if encoder == "cnn" else c.sizes.candidates // 2
    recipes = {k: graphs(c, r) for k, r in candidates(encoder, count, small(c)).items()}
    probe = Job(recipes["as it is"], longest * SHARES[0], "")
    width = 1
    if encoder == "cnn":
        rows = list(many.race(probe, train, held, c.device, steps=100 if c.device.type == "cuda" else 2))
        for row in rows:
            c.emit({"table": "race", **row})
        usable = [row for row in rows if row.get("compile") == probe.recipe.compile]
        width = max(usable, key=lambda row: row["steps_a_second"])["width"]
    alive = list(recipes)
    for rung, share in enumerate(SHARES):
        seeds = range(SEEDS if share == 1 and encoder == "cnn" else 1)
        jobs = [Job(dataclasses.replace(recipes[k], seed=s), longest * share, k) for s in seeds for k in alive]
        found = scored(c, encoder, rung, jobs, width, train, held, end)
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
    c: Context, encoder: str, rung: int, jobs: Sequence[Job], width: int, train: ImageSet, held: ImageSet, end: float
) -> list[tuple[str, float]]:
    """The kNN accuracy of each job, by its key: of an earlier call where there is one, else of a run now."""
    known = {(row["rung"], row["choice"], row["seed"]): row["knn_%"] for row in c.rows("search", encoder)}
    found = [(j.key, known[r]) for j in jobs if (r := (rung, j.key, j.recipe.seed)) in known]
    missing = [j for j in jobs if (rung, j.key, j.recipe.seed) not in known]
    for job, row in run_in(missing, width, train, held, c.device):
        c.emit({"table": encoder, "rung": rung, "pflop": job.pflop, "seed": job.recipe.seed, **row, "choice": job.key})
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
