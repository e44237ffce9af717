"""What each choice of the default recipe is worth: one change at a time, on a held-out 5,000 of the training images.

Two epochs over the other 45,000, two views unless the row says otherwise; the test set is not touched. One seed: a
difference under a point says little.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import crlf
from crlf.data import SOURCES, ImageSet, load
from crlf.encoders import CNN, ENCODERS
from crlf.optim import OptimSettings
from crlf.recipe import Recipe
from crlf.views import ViewSettings


def held_out(data_dir: str | Path | None = None) -> tuple[ImageSet, ImageSet]:
    """CIFAR-10's training images, parted: 45,000 to learn from and 5,000 to choose by."""
    whole = load("cifar10", data_dir)[0]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42))
    assert whole.labels is not None
    train, held = (
        ImageSet(whole.images[rows], whole.labels[rows], whole.classes, tuple(map(str, rows.tolist())))
        for rows in (order[5000:], order[:5000])
    )
    return train, held


def norm_before_pool(channels: int, size: int) -> nn.Module:
    """The stages in the usual order: convolution, norm, activation, pool."""
    network = CNN(channels)
    for i, stage in enumerate(network.stages):
        convolution, pool, norm, activation = stage.children()
        network.stages[i] = nn.Sequential(convolution, norm, activation, pool)
    return network


def pool_in_last_stage(channels: int, size: int) -> nn.Module:
    network = CNN(channels)
    convolution, _, norm, activation = network.stages[-1].children()
    network.stages[-1] = nn.Sequential(convolution, nn.MaxPool2d(2), norm, activation)
    return network


VARIANTS: dict[str, Callable[[int, int], nn.Module]] = {
    "embedding: last stage alone": lambda channels, size: CNN(channels, read=1),
    "embedding: last two stages": lambda channels, size: CNN(channels, read=2),
    "last stage pools too": pool_in_last_stage,
    "last stage 512 wide": lambda channels, size: CNN(channels, widths=(32, 64, 128, 512)),
    "norm and GELU before the pool": norm_before_pool,
}


def changes() -> dict[str, Recipe]:
    """The recipes, by what they change."""
    base = Recipe(data="held-out", epochs=2, views=2)
    return {
        "the base": base,
        **{name: replace(base, encoder=name) for name in VARIANTS},
        "views of 32 pixels instead of 24": replace(base, augmentation=ViewSettings(resolution=1.0)),
        "crops of at least 0.3, grayscale 0.1": replace(base, augmentation=ViewSettings(crop_min=0.3, grayscale=0.1)),
        "AdamW, lr 0.003": replace(base, optim=OptimSettings(optimizer="adamw", lr=3e-3)),
        "Muon, lr 0.04": replace(base, optim=OptimSettings(lr=0.04)),
        "four views of an image": replace(base, views=4),
    }


def measure() -> list[dict[str, Any]]:
    SOURCES["held-out"] = held_out
    ENCODERS.update(VARIANTS)
    return [{"change": name, **score(recipe)} for name, recipe in changes().items()]


def score(recipe: Recipe) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe, out=folder, device="cpu")
        crlf.embed(run, device="cpu")
        scores = crlf.probe(run)
    kept = {"linear %": "linear_accuracy", "kNN %": "knn_accuracy"}
    return {
        **{name: 100 * scores[key] for name, key in kept.items()},
        "train seconds": scores["train_seconds"],
        "PFLOP": scores["pflop"],
    }
