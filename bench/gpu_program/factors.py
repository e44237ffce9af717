"""What each choice of a recipe is worth, all tried at once: a Plackett-Burman design of short runs of equal operations.

Half of the runs have a change and half have not, whatever the other changes are, so every run tells of every change.
The effect of one is known 2.5 times as well as from as many runs that change one thing each. Judged on held-out
training images. Two designs: the record's ResNet-18, and the default recipe's light CNN.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.gpu_program import many
from bench.gpu_program.context import Context
from bench.gpu_program.many import Job
from bench.gpu_program.search import graphs, parted, setup
from crlf.recipe import RECIPES, Recipe

MEASURES = ("knn_%", "ridge_%")
FIRST_ROWS = {  # Plackett and Burman, Biometrika 33 (1946), page 323: a change each is + or -
    12: "++-+++---+-",
    20: "++--++++-+-+----++-",
    24: "+++++-+-++--++--+-+----",
}
RUNS, EFFECTS = "{} runs", "{} effects"  # tables of the results


@dataclass(frozen=True)
class Factor:
    """A change of a recipe.

    Args:
        settings: "optim.lr" -> 0.04.
        batch: what the batch is multiplied by.
        network: a word that names a variant of the light CNN (`bench.gpu_program.search.variant`).
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: float = 1.0
    network: str = ""


@dataclass(frozen=True)
class Design:
    """So many runs of a recipe, each with some of the factors; `runs - 1 - len(factors)` columns tell the noise."""

    recipe: str
    runs: int
    pflop: float
    factors: Mapping[str, Factor]
    before: Mapping[str, Any] = field(default_factory=lambda: {"augmentation.clamp": False, "optim.weight_decay": 0.0})
    """The recipe's settings as they were before the design told what they are worth."""


STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
DESIGNS = {
    "resnet18": Design("speedrun-knn90", 12, 2.5, {
        "lr 0.04": Factor({"optim.lr": 0.04}),
        "weight decay 0.1": Factor({"optim.weight_decay": 0.1}),
        "temperature 0.1": Factor({"head.temperature": 0.1}),
        "projector 2048 wide": Factor({"head.hidden": 2048}),
        "grayscale 0.2": Factor({"augmentation.grayscale": 0.2}),
        "crops of at least 0.1": Factor({"augmentation.crop_min": 0.1}),
        "8 views of half as many images": Factor({"views": 8}, batch=0.5),
        "half the batch": Factor(batch=0.5),
        "views cut to 0..1": Factor({"augmentation.clamp": True}),
        "twice the colour jitter": Factor({f"augmentation.{k}": v for k, v in STRONG.items()}),
    }),
    "cnn": Design("default", 20, 0.05, {
        "norm before the pool": Factor(network="norm"),
        "whitened first convolution": Factor(network="white"),
        "a convolution more in the last stage": Factor(network="deep"),
        "projector 1024 wide": Factor({"head.hidden": 1024}),
        "batch 64": Factor(batch=0.5),
        "views of 20 px": Factor({"augmentation.resolution": 0.625}),
        "weight decay 0.1": Factor({"optim.weight_decay": 0.1}),
        "8 views of half as many images": Factor({"views": 8}, batch=0.5),
        "lr 0.04": Factor({"optim.lr": 0.04}),
        "rate of vectors 0.006": Factor({"optim.vector_lr": 0.006}),
        "temperature 0.1": Factor({"head.temperature": 0.1}),
        "crops of at least 0.1": Factor({"augmentation.crop_min": 0.1}),
        "views cut to 0..1": Factor({"augmentation.clamp": True}),
        "grayscale 0.1": Factor({"augmentation.grayscale": 0.1}),
        "momentum 0.9": Factor({"optim.momentum": 0.9}),
        "projection to 256": Factor({"head.projection": 256}),
        "warm-up 0.03": Factor({"optim.warmup": 0.03}),
        "half the colour jitter": Factor({f"augmentation.{k}": v / 4 for k, v in STRONG.items()}),
    }),
}  # fmt: skip


def measure(c: Context) -> None:
    """Both designs, the first of them the one that the record waits for."""
    setup()
    train, held = (many.on(c.device, part) for part in parted(c.sizes.data, c.sizes.held_out, c.sizes.subset))
    for name, design in DESIGNS.items():
        if c.sizes.factors and name not in c.sizes.factors:
            continue
        rows, took = [], 0.0
        for number, chosen in enumerate(runs(design)):
            if c.clock.left() < took:
                break
            start = time.perf_counter()
            try:
                job = job_of(c, design, chosen)
                row = next(many.in_turn([job], train, held, c.device))[1]
            except Exception as error:  # the next run may work
                traceback.print_exc()
                c.emit({"table": RUNS.format(name), "run": number, "error": f"{type(error).__name__}: {error}"[:200]})
                continue
            took = time.perf_counter() - start
            rows.append((chosen, row))
            c.emit({"table": RUNS.format(name), "run": number, **row, "changes": ", ".join(chosen)})
        if len(rows) >= 4:
            for effect in effects(design, rows):
                c.emit({"table": EFFECTS.format(name), **effect})


def job_of(c: Context, design: Design, chosen: Sequence[str]) -> Job:
    """The run with these factors; what the program's sizes say comes before them."""
    base = changed(RECIPES[design.recipe], design.before)
    factors = [design.factors[name] for name in chosen]
    batch = int(base.batch_size)
    settings: dict[str, Any] = {}
    for factor in factors:
        settings |= factor.settings
        batch = int(batch * factor.batch)
    words = [factor.network for factor in factors if factor.network]
    encoder = " ".join([base.encoder, *words])
    recipe = changed(base, {**settings, "batch_size": batch, "data": c.sizes.data, **c.sizes.small})
    if c.sizes.small.get("encoder", base.encoder) == base.encoder:
        recipe = dataclasses.replace(recipe, encoder=encoder)
    pflop = min(design.pflop, c.sizes.change)
    return Job(graphs(c, recipe), pflop, ", ".join(chosen))


def runs(design: Design) -> Iterator[list[str]]:
    """The factors of each run: the first row turned a place at a time, and at last none."""
    names = list(design.factors)
    for row in signs(design.runs):
        yield [name for name, sign in zip(names, row, strict=False) if sign > 0]


def signs(count: int) -> list[list[int]]:
    """Plackett and Burman's design of so many runs: +1 or -1 for count - 1 columns, each orthogonal to each other."""
    first = [1 if sign == "+" else -1 for sign in FIRST_ROWS[count]]
    turned = [first[-i:] + first[:-i] for i in range(count - 1)]
    return [*turned, [-1] * (count - 1)]


def effects(design: Design, rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What each factor is worth, the largest first: least squares, which with all runs is the mean of those with the
    factor less the mean of those without.

    Their standard error is Lenth's (Technometrics 31, 1989): the median effect is noise, whatever the large ones are.
    """
    names = list(design.factors)
    chosen = np.array([[1.0, *(name in some for name in names)] for some, _ in rows])
    scores = np.array([[float(row[measure]) for measure in MEASURES] for _, row in rows])
    worth = np.linalg.lstsq(chosen, scores, rcond=None)[0][1:]
    found: list[dict[str, Any]] = [
        {"change": name, **dict(zip(MEASURES, values.tolist(), strict=True))}
        for name, values in zip(names, worth, strict=True)
    ]
    for measure in MEASURES:
        error = lenth([row[measure] for row in found])
        for row in found:
            row[f"{measure}_error"] = error
    return sorted(found, key=lambda row: -row[MEASURES[0]])


def lenth(values: Sequence[float]) -> float:
    """Lenth's pseudo standard error of the effects of a design."""
    sizes = [abs(value) for value in values]
    first = 1.5 * statistics.median(sizes)
    return 1.5 * statistics.median([size for size in sizes if size <= 2.5 * first] or [0.0])


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings: "optim.lr" is the learning rate.

    Raises:
        InputError: a recipe has no such setting, or it cannot have this value.
    """
    values = recipe.to_dict()
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[key or name] = value
    return Recipe.from_dict(values)
