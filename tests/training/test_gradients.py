"""A batch in parts: the loss and the gradients are those of the whole, and memory is that of a part."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from sampling import some
from small_methods import EVERY, met, narrow, small
from torch import Tensor, nn

import crlf
from crlf.encoders import CNN, ENCODERS
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import Method
from crlf.methods.simclr import SimCLR, SimCLRSettings
from crlf.optim import OptimSettings
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.runtime.batch_norm import FrozenNorms
from crlf.training.cost import saved_bytes
from crlf.training.gradients import gradients

PLAIN = contextlib.nullcontext()
BATCH = 10
LABELS = torch.arange(BATCH) % 3


class Plain(nn.Module):
    """An encoder whose rows do not meet."""

    out_dim = 12

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 64, 24), nn.Tanh(), nn.Dropout(dropout), nn.Linear(24, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OfAnySize(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.adaptive_avg_pool2d(x, 8))


def views_of(part: range) -> list[Tensor]:
    images = torch.randn(3, BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list((images[:1] + 0.3 * images[1:])[:, part.start : part.stop])


def found(method: Method, most: int, frozen: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss, what is logged and every gradient; and what changed in the method."""
    torch.manual_seed(5)
    loss, stats = gradients(method, views_of, distributed.parts_of(BATCH, most), LABELS, PLAIN, frozen)
    assert not loss.requires_grad
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert grads.keys() == {name for name, p in method.named_parameters() if p.requires_grad}
    return {"loss": loss, **stats, **grads}, dict(method.named_buffers())


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: n + m)


def without_norms(name: str) -> Method:
    """A method none of whose rows meet before the loss."""
    torch.manual_seed(0)
    method = met(METHODS[name](Plain(), narrow(name)), 9).double().train()
    for module in list(method.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm1d):
                setattr(module, child, nn.Identity())
    return method


@EVERY
@pytest.mark.parametrize("most", [1, 4, 9])
def test_parts_give_the_whole_batchs_loss_and_gradients(name: str, most: int):
    """Queues, centres and what is logged too."""
    (whole, after), (parted, after_parts) = found(without_norms(name), 0), found(without_norms(name), most)
    assert sum("weight" in key for key in whole) >= (2 if name == "diet" else 4)  # which has no projector
    assert_equal(whole, parted)
    assert_equal(after, after_parts)


@EVERY
def test_with_frozen_norms_parts_are_exact_and_statistics_are_the_whole_batchs(name: str):
    method, other = small(name).double(), small(name).double()
    for encoder in (method, other):
        for module in encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # as if it had settled
                module.running_mean.fill_(0.1)
                module.running_var.fill_(0.7)
    (whole, after), (parted, after_parts) = found(method, 0, frozen=True), found(other, 3, frozen=True)
    assert_equal(whole, parted)
    counted = "num_batches_tracked"
    assert_equal(*({k: v for k, v in buffers.items() if counted not in k} for buffers in (after, after_parts)))
    assert not any((v == 0.1).all() for k, v in after.items() if "running_mean" in k)


def test_frozen_norms_normalise_by_what_they_remember_and_move_towards_the_batch():
    norm, x = nn.BatchNorm1d(3).double(), torch.randn(8, 3, dtype=torch.float64) * 2 + 1
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    with FrozenNorms(norm):
        y = norm(x)
        assert torch.equal(norm.running_mean, mean)
    torch.testing.assert_close(y, (x - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * x.var(0))


def test_frozen_norms_with_momentum_0_remember_nothing_new():
    norm = nn.BatchNorm1d(3, momentum=0.0)
    with FrozenNorms(norm):
        norm(torch.randn(4, 3) + 1)
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_after_an_error_frozen_norms_remember_what_they_did():
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ZeroDivisionError), FrozenNorms(norm):
        norm(torch.randn(4, 3) + 1)
        raise ZeroDivisionError
    assert (norm.running_mean == 0).all()


def test_batch_norm_of_a_part_takes_the_parts_moments_and_remembers_one_batch():
    """The same images in each part: then parts are the batch, and memory must have moved as far as one batch does."""
    method, other = small("simclr").double(), small("simclr").double()
    twice = [view.repeat(2, 1, 1, 1) for view in views_of(range(5))]

    def repeated(part: range) -> list[Tensor]:
        return [view[part.start : part.stop] for view in twice]

    whole, _ = gradients(method, repeated, distributed.parts_of(BATCH), LABELS, PLAIN)
    parted, _ = gradients(other, repeated, distributed.parts_of(BATCH, 5), LABELS, PLAIN)
    torch.testing.assert_close(whole, parted)
    for name, p in method.named_parameters():
        torch.testing.assert_close(p.grad, other.get_parameter(name).grad, atol=1e-9, rtol=1e-6)
    for name, value in method.named_buffers():
        if "running_mean" in name:
            torch.testing.assert_close(value, other.get_buffer(name))


def test_both_passes_drop_the_same_units():
    def model() -> Method:
        torch.manual_seed(0)
        return SimCLR(Plain(dropout=0.5), SimCLRSettings(hidden=8, projection=4)).double().train()

    one = model()
    torch.manual_seed(5)
    z = [one.project(views_of(part))[0] for part in distributed.parts_of(BATCH, 4)]
    loss = one.loss(torch.cat(z, dim=1))[0]
    loss.backward()
    parted, _ = found(model(), 4)
    assert parted["loss"].item() == pytest.approx(loss.item())
    # Batch norm of the head has other moments in neither: the parts are the same in both.
    for name, p in one.named_parameters():
        torch.testing.assert_close(parted[name], p.grad, atol=1e-9, rtol=1e-6)


def test_parts_are_as_few_and_as_equal_as_can_be():
    assert distributed.parts_of(10) == [range(10)] == distributed.parts_of(10, 10) == distributed.parts_of(10, 64)
    assert [len(part) for part in distributed.parts_of(10, 4)] == [3, 3, 4]
    assert [len(part) for part in distributed.parts_of(4096, 256)] == [256] * 16


@pytest.mark.parametrize("rank", range(3))
def test_every_rank_has_as_many_parts(monkeypatch: pytest.MonkeyPatch, rank: int):
    """Else one waits for a batch norm that the others never come to."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(rank))
    for count, most in ((10, 2), (10, 3), (11, 3), (9, 3), (7, 1)):
        parts = distributed.parts_of(count, most)
        assert len(parts) == -(-count // (3 * most))
        assert [i for part in parts for i in part] == list(distributed.part_of(count))
        assert max(map(len, parts)) <= most


def test_memory_is_that_of_a_part():
    """What autograd keeps at a time, the most of any moment."""
    torch.manual_seed(0)
    method = SimCLR(CNN(3, widths=(8, 16), read=2), SimCLRSettings(hidden=16, projection=8)).train()
    images = torch.randn(256, 3, 16, 16)

    def run(most: int) -> int:
        peak = 0

        def views(part: range) -> list[Tensor]:
            return [images[part.start : part.stop]] * 2

        project = SimCLR.project

        def measured(self: SimCLR, given: list[Tensor]):
            nonlocal peak
            peak = max(peak, saved_bytes(lambda: project(self, given)[0]))
            return project(self, given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SimCLR, "project", measured)
            gradients(method, views, distributed.parts_of(256, most), None, PLAIN)
        return peak

    assert run(32) < run(0) / 6


@pytest.mark.parametrize("encoder", some(["plain", "vit_tiny"]))
def test_a_run_in_parts_learns_what_the_whole_batch_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
):
    """With an encoder without batch norm, in float32."""
    monkeypatch.setitem(ENCODERS, "plain", lambda channels, size, regions: OfAnySize())
    recipe = Recipe(
        encoder=encoder, data="shapes", subset=32, batch_size=16, views=2, epochs=2, precision="float32",
        method="supcon", head=narrow("supcon"),
    )  # fmt: skip
    whole = crlf.pretrain(recipe, out=tmp_path / "whole", device="cpu")
    parted = crlf.pretrain(dataclasses.replace(recipe, micro_batch=5), out=tmp_path / "parts", device="cpu")
    assert parted.array("loss.npy") == pytest.approx(whole.array("loss.npy"), abs=2e-4)
    assert parted.scores["pflop"] == pytest.approx(4 / 3 * whole.scores["pflop"])


def test_a_micro_batch_below_zero():
    with pytest.raises(InputError, match=r"^micro_batch must be in 0\.\.65536, not -1$"):
        Recipe(micro_batch=-1)


def test_a_loss_that_is_twice_as_large_moves_sgd_twice_as_far(tmp_path: Path):
    """Rates that were published for a sum over both directions serve a loss that is their mean."""
    recipe = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=2, precision="float32")
    losses = []
    for lr, scale in ((0.1, 2.0), (0.2, 1.0), (0.1, 1.0)):
        optim = OptimSettings(optimizer="sgd", lr=lr, lr_per=0, loss_scale=scale)
        run = crlf.pretrain(dataclasses.replace(recipe, optim=optim), out=tmp_path / f"{lr}-{scale}", device="cpu")
        losses.append(run.array("loss.npy").tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)
