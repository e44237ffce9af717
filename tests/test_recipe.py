"""The named recipes: each survives JSON, says what its page says, and takes a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sampling import some

from crlf.augmentation import Views
from crlf.data import load
from crlf.methods.base import loss_of
from crlf.optim import OPTIMIZERS
from crlf.recipe import RECIPES, Recipe
from crlf.training.state import State

PAGE = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text(encoding="utf-8")


DEFAULT: dict[str, object] = {
    "method": "simclr", "encoder": "cnn", "data": "cifar10", "epochs": 10, "batch_size": 128, "views": 4, "seed": 0,
    "augmentation": {
        "resolution": 0.75, "crop_min": 0.2, "crop_max": 1.0, "local_views": 0, "flip": 0.5, "jitter": 0.8,
        "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.4, "hue": 0.1, "grayscale": 0.2, "blur": 0.0,
        "blur_kernel": 3, "blur_min": 0.1, "blur_max": 2.0, "clamp": True,
    },
    "optim": {
        "optimizer": "muon", "lr": 0.02, "lr_per": 256, "vector_lr": 0.003, "momentum": 0.95, "weight_decay": 0.1,
        "decay_all": False, "loss_scale": 1.0, "warmup": 0.1, "final_lr": 0.0,
    },
    "embedding": {"regions": 2, "mirror": True},
    "head": {"temperature": 0.2, "hidden": 256, "projection": 128, "projector_layers": 2, "projector_norms": "hidden"},
}  # fmt: skip


def test_the_default_is_the_one_that_was_measured():
    """Its numbers are in the records: another default needs new ones."""
    found = Recipe().to_dict()
    for name, value in DEFAULT.items():
        assert value == ({k: found[name][k] for k in value} if isinstance(value, dict) else found[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_it_survives_json(name: str):
    assert Recipe.from_dict(RECIPES[name].to_dict()) == RECIPES[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "default"])
def test_the_page_names_it(name: str):
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", some(RECIPES, ["default", "seed", "simclr-vit", "mocov3-r18"]))
def test_it_takes_a_step(name: str):
    data = load("shapes")[0].first(1100)
    recipe = RECIPES[name].resolved(data)
    state = State(recipe, data, torch.device("cpu"))
    make_view = Views(recipe.augmentation, recipe.normalisation)
    views = make_view(data.images[:4], torch.Generator().manual_seed(0), recipe.views)
    loss, _ = loss_of(state.method, views.chunk(recipe.views), data.labels)
    loss.backward()
    before = [p.clone() for p in state.method.encoder.parameters() if p.requires_grad]
    for optimizer in state.optimizers:
        optimizer.step()
    after = [p for p in state.method.encoder.parameters() if p.requires_grad]
    assert loss.isfinite() and all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_published_rates_follow_the_batch():
    assert RECIPES["simclr-r50"].optim.for_batch(1024).lr == 4.0
    assert RECIPES["simclr-r18"].optim.for_batch(512).lr == pytest.approx(0.12)
    assert set(recipe.optim.optimizer for recipe in RECIPES.values()) <= set(OPTIMIZERS)
