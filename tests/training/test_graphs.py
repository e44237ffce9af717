"""A step that is replayed as a graph trains as the plain one does, bit for bit: every method, optimizer and encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_methods import met, narrow
from tape import Tape

from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED
from crlf.encoders import CNN
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import IndexedMethod, SupervisedMethod
from crlf.optim import OPTIMIZERS, OptimSettings, keep_rates_in_tensors, orthogonalise, rates, set_rates
from crlf.optim.muon_step import orthogonalise_all, plain_iteration
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.training.compile import require_compilable
from crlf.training.graphs import Replayed, replayed
from crlf.training.loop import Step

STEPS = 8  # four as they are, four replayed
CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (STEPS, 8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def trained(
    method: str, optimizer: str, replay: bool, local: int = 0, **settings: Any
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The losses of some steps, and all weights, buffers and moments at the end."""
    recipe = Recipe(
        method=method, views=2, batch_size=8, precision="float32", normalisation=PUBLISHED["cifar10"],
        optim=OptimSettings(optimizer=optimizer, **settings), augmentation=ViewSettings(local_views=local),
    )  # fmt: skip
    torch.manual_seed(0)
    model = met(METHODS[method](CNN(3, widths=(4, 8, 8), read=2), narrow(method)), 8).train()
    model.local_views = local
    movers = OPTIMIZERS[optimizer](list(model.named_parameters()), recipe.optim)
    keep_rates_in_tensors(movers, CPU)
    make_view = Views(recipe.augmentation, recipe.normalisation)
    step = Step(recipe, model, movers, make_view, CPU)
    take, losses = Replayed(step, Tape) if replay else step, []
    for i in range(STEPS):
        set_rates(movers, **rates(recipe.optim, (i + 0.5) / STEPS))
        numbers = make_view.numbers(8, 2, torch.Generator().manual_seed(i))
        labels = LABELS.roll(i) if isinstance(model, SupervisedMethod | IndexedMethod) else None
        loss, stats = take(IMAGES[i], numbers, labels, measured=True)
        losses.append((loss.item(), *(value.item() for value in stats.values())))
        model.after_step((i + 1) / STEPS)
    moments = {
        f"{m} {i} {name}": value
        for m, mover in enumerate(movers)
        for i, state in enumerate(mover.state.values())
        for name, value in state.items()
    }
    return losses, {**model.state_dict(), **moments}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_without_a_graph(method: str):
    plain, fast = (trained(method, "muon", replay) for replay in (False, True))
    assert plain[0] == fast[0]
    assert plain[1].keys() == fast[1].keys()
    assert not [name for name, value in plain[1].items() if not torch.equal(value, fast[1][name])]


@pytest.mark.parametrize("method", ["dino", "simclr"])
def test_small_views_are_replayed_too(method: str):
    (plain, states), (fast, others) = (trained(method, "muon", replay, local=3) for replay in (False, True))
    assert plain == fast and plain != trained(method, "muon", False)[0]
    assert all(torch.equal(value, others[name]) for name, value in states.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_follows_its_schedule_in_a_graph(optimizer: str):
    plain, fast = (trained("simclr", optimizer, replay, weight_decay=0.01) for replay in (False, True))
    assert plain[0] == fast[0]
    assert not [name for name, value in plain[1].items() if not torch.equal(value, fast[1][name])]


@pytest.mark.parametrize("kept", ["lr", "inputs", "buffers"])
def test_what_a_graph_would_get_wrong_is_noticed(kept: str, monkeypatch: pytest.MonkeyPatch):
    """A rate that is a number, inputs that are not copied, a queue that moves: each leads elsewhere."""
    plain = trained("mocov2", "muon", False)
    if kept == "lr":
        monkeypatch.setattr(
            "crlf.optim.muon_step.add_scaled", lambda p, d, lr, factor: p.add_(d, alpha=float(lr) * factor)
        )
    elif kept == "inputs":
        monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: self)
    else:
        monkeypatch.setattr(Replayed, "whole", lambda self: self.step(*self.inputs, measured=True))
    assert trained("mocov2", "muon", True)[0] != plain[0]


def test_a_rate_in_a_tensor_is_the_rate():
    for optimizer in OPTIMIZERS:
        weights = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
        for weight, in_tensors in zip(weights, (False, True), strict=True):
            movers = OPTIMIZERS[optimizer]([("w", weight)], OptimSettings(optimizer=optimizer, weight_decay=0.1))
            if in_tensors:
                keep_rates_in_tensors(movers, CPU)
            for i in range(3):
                set_rates(movers, lr=1 / (1 + i), decay=1.0)
                (weight * torch.arange(3)).square().sum().backward()
                for mover in movers:
                    mover.step()
                    mover.zero_grad()
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_alike_matrices_are_orthogonalised_as_each_alone():
    some = [torch.randn(6, 20, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for together, alone in zip(orthogonalise_all(some), map(orthogonalise, some), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    on_gpu = plain_iteration(torch.stack(some) / torch.stack(some).norm(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(on_gpu, torch.stack([orthogonalise(m) for m in some]), rtol=2e-3, atol=2e-3)


def test_a_few_steps_are_taken_as_they_are_and_the_rest_replayed():
    """Three warm up, the fourth is recorded: `warm` says so to whoever measures the speed."""
    calls: list[bool] = []

    class Noting:
        method, optimizers = torch.nn.Identity(), ()

        def __call__(self, images: Any, numbers: Any, labels: Any, measured: bool = False) -> Any:
            calls.append(measured)
            return images.sum(), {}

    take = Replayed(Noting(), Tape)
    found = [take(torch.full((2,), i), torch.zeros(1), None)[0].item() for i in range(6)]
    assert found == [0, 2, 4, 6, 8, 10]
    assert calls == [True] * 4 and take.warm == 4


def test_only_the_modes_that_say_so_replay():
    step = type("Plain", (), {"optimizers": ()})()
    assert replayed(step, "none", CPU) is step and replayed(step, "kernels", CPU) is step
    assert isinstance(replayed(step, "graphs", CPU), Replayed) and isinstance(replayed(step, "all", CPU), Replayed)


@pytest.mark.parametrize(
    "change", [{"micro_batch": 4}, {"frozen_norm": True}, {"optim": OptimSettings(final_weight_decay=2.0)}, {}]
)
def test_what_no_graph_can_hold_is_refused(change: dict, monkeypatch: pytest.MonkeyPatch):
    recipe = dataclasses.replace(Recipe(compile="graphs"), **change)
    with pytest.raises(InputError, match="compile 'graphs' needs device 'cuda'"):
        require_compilable(recipe, CPU)
    gpu = torch.device("cuda")
    if change:
        with pytest.raises(InputError, match=f"needs {next(iter(change)).replace('optim', 'final_weight_decay')}"):
            require_compilable(recipe, gpu)
    else:
        require_compilable(recipe, gpu)
        monkeypatch.setattr(distributed, "world", lambda: 2)
        with pytest.raises(InputError, match="in one process, not in 2"):
            require_compilable(recipe, gpu)
    require_compilable(dataclasses.replace(recipe, compile="kernels"), CPU)
