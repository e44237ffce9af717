"""The named recipes: each survives JSON, says what its page says, and takes a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crlf.augmentation import Views
from crlf.data import load
from crlf.methods.base import loss_of
from crlf.optim import OPTIMIZERS
from crlf.recipe import RECIPES, Recipe
from crlf.training.state import State

PAGE = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_it_survives_json(name: str):
    assert Recipe.from_dict(RECIPES[name].to_dict()) == RECIPES[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "default"])
def test_the_page_names_it(name: str):
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", RECIPES)
def test_it_takes_a_step(name: str):
    recipe, data = RECIPES[name], load("shapes")[0].first(1100)
    state = State(recipe, data, torch.device("cpu"))
    views = Views(recipe.augmentation)(data.images[:4], torch.Generator().manual_seed(0), recipe.views)
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
