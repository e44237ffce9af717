"""One change at a time of the record's recipe: short runs of equal operations, on held-out training images."""

from __future__ import annotations

import traceback
from typing import Any

from bench.gpu_program import many
from bench.gpu_program.context import Context
from bench.gpu_program.many import Job
from bench.gpu_program.search import graphs, parted
from crlf.recipe import RECIPES, Recipe

RECIPE = "speedrun-knn90"
CHANGES: dict[str, dict[str, Any]] = {  # by what they are likely to be worth
    "as it is": {},
    "lr 0.04": {"optim.lr": 0.04},
    "8 views, batch 256": {"views": 8, "batch_size": 256},
    "batch 256": {"batch_size": 256},
    "lr 0.01": {"optim.lr": 0.01},
    "weight decay 0.1": {"optim.weight_decay": 0.1},
    "temperature 0.1": {"head.temperature": 0.1},
    "projector 2048 wide": {"head.hidden": 2048},
    "grayscale 0.2": {"augmentation.grayscale": 0.2},
    "MoCo v3": {"method": "mocov3", "head": {}},
    "views of 20 px": {"augmentation.resolution": 0.625},
    "crops of at least 0.1": {"augmentation.crop_min": 0.1},
    "views of 32 px": {"augmentation.resolution": 1.0},
    "temperature 0.5": {"head.temperature": 0.5},
    "batch 1024": {"batch_size": 1024},
}


def measure(c: Context) -> None:
    train, held = (many.on(c.device, part) for part in parted(c.sizes.data, c.sizes.held_out, c.sizes.subset))
    took = 0.0
    for name, settings in CHANGES.items():
        if c.clock.left() < took:
            return
        recipe = graphs(c, changed(RECIPES[RECIPE], {**settings, "data": c.sizes.data, **c.sizes.small}))
        try:
            row = next(many.in_turn([Job(recipe, c.sizes.change, name)], train, held, c.device))[1]
        except Exception as error:  # the next change may work
            traceback.print_exc()
            c.emit({"change": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
            continue
        took = row["run_seconds"]
        c.emit({"change": name, "pflop": c.sizes.change, **row})


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with other settings: "optim.lr" is the learning rate.

    Raises:
        InputError: a recipe has no such setting, or it cannot have this value.
    """
    values = recipe.to_dict()
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[key or name] = value
    return Recipe.from_dict(values)
