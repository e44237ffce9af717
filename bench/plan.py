"""What the GPU recipes will cost on paper: operations counted from the network, seconds at a share of a GPU's peak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from crlf import encoders
from crlf.augmentation import view_size
from crlf.methods import METHODS
from crlf.methods.base import training_flops
from crlf.recipe import RECIPES

IMAGES = 50_000
PEAK = 989e12  # bf16 operations a second of an H100 or H200 without sparsity, as NVIDIA gives it
SHARES = (0.15, 0.25, 0.35)  # of it that a ResNet-18 on small images may reach
PLANNED = ("speedrun-knn90", "r18-best")


def table(measured: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each recipe.

    Args:
        measured: what is known of a recipe, by its name.
    """
    rows = []
    for name in PLANNED:
        recipe = RECIPES[name]
        side = view_size(32, recipe.augmentation)
        with torch.random.fork_rng(devices=[]):
            method = METHODS[recipe.method](encoders.build(recipe.encoder, 3, 32), recipe.head)
        a_view = training_flops(method, recipe.views, 3, side, side)
        views = recipe.epochs * (IMAGES // recipe.batch_size) * recipe.batch_size * recipe.views
        seconds = {f"minutes at {share:.0%} of the peak": views * a_view / (PEAK * share) / 60 for share in SHARES}
        rows.append(
            {
                "recipe": name,
                "GFLOP a view": a_view / 1e9,
                "million views": views / 1e6,
                "PFLOP": views * a_view / 1e15,
                **seconds,
                "measured": measured.get(name, "not measured"),
            }
        )
    return rows
