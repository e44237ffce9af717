"""The estimate before a run: it changes nothing, grows with what costs, and is near what a run takes."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

import crlf
from crlf.data import PUBLISHED, load
from crlf.recipe import Recipe
from crlf.training.cost import Estimate, estimate, saved_bytes
from crlf.training.pretrain import tell_cost
from crlf.training.state import State

TINY = Recipe(data="shapes", subset=256, batch_size=64, epochs=3, normalisation=PUBLISHED["shapes"])
CPU = torch.device("cpu")


def cost_of(recipe: Recipe) -> Estimate:
    data = load(recipe.data)[0].first(recipe.subset)
    state = State(recipe, data, CPU)
    return estimate(recipe, data, state.method, state.optimizers)


def test_it_changes_neither_weights_nor_statistics_nor_random_state(narrow: None):
    data = load(TINY.data)[0].first(TINY.subset)
    state = State(TINY, data, CPU)
    before = {name: value.clone() for name, value in state.method.state_dict().items()}
    random = torch.random.get_rng_state()
    estimate(TINY, data, state.method, state.optimizers)
    assert all(torch.equal(before[name], value) for name, value in state.method.state_dict().items())
    assert not any(optimizer.state for optimizer in state.optimizers)
    assert all(p.grad is None for p in state.method.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def tensors() -> int:
    for _ in range(3):  # a compiled step of a test before leaves cycles that one pass only begins to take apart
        gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.long
def test_it_leaves_nothing_behind(narrow: None):
    """A result that its own node had saved kept the whole graph, for good: 12 MB a run of one process."""
    for _ in range(2):  # what the tests before have left goes with the second
        cost_of(TINY)
    before = tensors()
    cost_of(TINY)
    assert tensors() <= before  # earlier tests may still have left some to be collected


def test_time_is_in_proportion_to_epochs_and_a_budget_is_kept(narrow: None):
    assert cost_of(dataclasses.replace(TINY, epochs=300)).seconds > 20 * cost_of(TINY).seconds
    budget = cost_of(dataclasses.replace(TINY, minutes=2.0))
    assert budget.seconds == pytest.approx(120) and budget.epochs > 3


def test_what_is_done_costs_nothing_more(narrow: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.training.cost.fastest", lambda act, device: 2.0)
    data = load(TINY.data)[0].first(TINY.subset)
    state = State(TINY, data, CPU)
    whole, half, none = (estimate(TINY, data, state.method, [], done).seconds for done in (0.0, 0.5, 1.0))
    assert whole == pytest.approx(3 * 4 * (2 * 64 / 32 + 2))  # epochs, steps, and of each: half a batch twice, a move
    assert (half, none) == (pytest.approx(whole / 2), 0)


def test_memory_grows_with_the_batch(narrow: None):
    small, large = (cost_of(dataclasses.replace(TINY, batch_size=size)).memory for size in (64, 256))
    assert large > small


def test_saved_bytes_counts_each_tensor_once():
    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: (x.exp() * 2).sum()) == 4000  # exp keeps its result; times two and sum keep nothing
    assert saved_bytes(lambda: (x * 1).square().square().sum()) == 8000
    weight = torch.nn.Parameter(torch.ones(1000))
    assert saved_bytes(lambda: (weight * weight).sum()) == 0  # weights are counted elsewhere


def test_disk_is_near_what_a_run_leaves(tmp_path):
    short = dataclasses.replace(TINY, epochs=1, views=2)
    run = crlf.pretrain(short, out=tmp_path / "run", device="cpu")
    crlf.embed(run)
    held = sum(file.stat().st_size for file in run.path.iterdir())
    report = 8_000_000  # figures and report, which this run has not
    assert cost_of(short).disk - report == pytest.approx(held, rel=0.5)


def test_more_memory_than_there_is_is_said(monkeypatch, capsys):
    data = load(TINY.data)[0].first(TINY.subset)
    monkeypatch.setattr("crlf.training.pretrain.memory_there", lambda device: 10_000_000)
    tell_cost(State(TINY, data, CPU), data)
    said = capsys.readouterr().err
    assert "estimate: " in said and "warning: that is more memory than the 10 MB" in said and "--batch-size" in said
