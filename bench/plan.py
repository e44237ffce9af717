"""What the GPU recipes will cost on paper: operations counted from the network, seconds at a share of a GPU's peak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from crlf import encoders
from crlf.methods import METHODS
from crlf.recipe import RECIPES
from crlf.training.cost import flops_of_view

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
        with torch.random.fork_rng(devices=[]):
            method = METHODS[recipe.method](encoders.build(recipe.encoder, 3, 32), recipe.head)
        a_view = flops_of_view(recipe, method, 3, 32, 32)
        views = recipe.epochs * (IMAGES // recipe.batch_size) * recipe.batch_size * recipe.all_views
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
