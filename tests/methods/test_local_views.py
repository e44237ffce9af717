"""Small views beside the large ones: each method's loss against its parts, one pass a size, costs, parts and a run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from references import cos, draw, mean
from small_methods import small, views_of
from torch import Tensor, nn

import crlf
from crlf import data
from crlf.augmentation import ViewSettings
from crlf.encoders import CNN, ENCODERS
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import Method, Target, cosine, in_sizes, training_flops, unit
from crlf.methods.dino import cross_entropy, sharpened
from crlf.methods.lejepa import sigreg
from crlf.methods.resa import resa
from crlf.methods.simclr import nt_xent_small, nt_xent_views
from crlf.methods.swav import sinkhorn, swapped_prediction
from crlf.methods.visreg import visreg_terms
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.runtime.interrupts import Interrupted
from crlf.training.cost import estimate, flops_of_view
from crlf.training.gradients import gradients
from crlf.training.state import State

TAKERS = [name for name, kind in METHODS.items() if kind.takes_local]
EVERY = pytest.mark.parametrize("name", TAKERS)
V, L = 2, 3
PAIRS = [(i, j) for i in range(V + L) for j in range(V) if i != j]  # a view, and a large one that it predicts


def sizes(batch: int = 8) -> list[Tensor]:
    """Two large views and three small ones."""
    views = views_of(V + L, batch)
    return [*views[:V], *(view[:, :, 2:10, 2:10] for view in views[V:])]


def with_local(name: str, **settings: float) -> Method:
    method = small(name, **settings)
    method.local_views = L
    return method


def projected(method: Method, views: list[Tensor], target: Target | None = None) -> Tensor:
    """What the encoder and the projector make of views, of each size apart: (V, B, P)."""
    encoder = target.networks[0] if target else method.encoder
    h = torch.cat([encoder(torch.cat(views[:V])), encoder(torch.cat(views[V:]))])
    return method.projector(h).unflatten(0, (len(views), -1))


def test_who_takes_small_views():
    assert TAKERS == ["dino", "lejepa", "resa", "simclr", "swav", "visreg"]


@EVERY
def test_large_views_alone_give_the_same_bits_as_ever(name: str):
    """What is passed to the encoder is one tensor of all views."""
    views, seen = views_of(3), []
    method = small(name)
    method.encoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    method(views)
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat(views))


@EVERY
def test_the_encoder_gets_each_size_once_and_a_target_no_small_view(name: str):
    method, seen = with_local(name), {"encoder": [], "target": []}
    method.encoder.register_forward_hook(lambda m, args, y: seen["encoder"].append(args[0].shape))
    for target in (module for module in method.modules() if isinstance(module, Target)):
        target.register_forward_hook(lambda m, args, y: seen["target"].append(len(args[0])))
    method(sizes())
    assert seen["encoder"] == [(V * 8, 3, 12, 12), (L * 8, 3, 8, 8)]
    assert set(seen["target"]) <= {V}


def test_in_sizes_joins_what_is_side_by_side():
    network, seen = nn.Flatten(), []
    network.register_forward_hook(lambda m, args, y: seen.append(len(args[0])))
    a, b = draw(2, 1, 3, 4), draw(2, 1, 4, 3)
    assert torch.equal(in_sizes(network, [a, a, b, a]), torch.cat([a, a, b.flatten(1).view_as(a), a]).flatten(1))
    assert seen == [4, 2, 2]


# The losses, each from what the paper compares


def test_simclr():
    """Each view with every other large one of its image, among the large ones of the other images."""
    z, terms = draw(V + L, 4, 3), []
    for i, j in PAIRS:
        for image in range(4):
            there = [math.exp(cos(z[i, image], z[v, b]) / 0.5) for v in range(V) for b in range(4) if b != image]
            own = math.exp(cos(z[i, image], z[j, image]) / 0.5)
            terms.append(-math.log(own / (own + sum(there))))
    method = with_local("simclr", temperature=0.5)
    assert method.loss(z)[0].item() == pytest.approx(mean(terms), rel=1e-9)


def test_a_small_view_alone_is_compared_as_a_large_one_would_be():
    """With one large view and one small one: NT-Xent of two views has the same terms in one of its directions."""
    z = draw(2, 5, 3)
    found = (nt_xent_small(z[1:], z[:1], 0.5) + nt_xent_small(z[:1], z[1:], 0.5)).item() / 2
    rows = [unit(view) for view in z]
    logits = rows[0] @ rows[1].T / 0.5
    expected = [-(side.log_softmax(dim=1)).diagonal().mean().item() for side in (logits, logits.T)]
    assert found == pytest.approx(mean(expected), rel=1e-9)
    both = nt_xent_views(z, 0.5).item()
    assert both > found  # there each row has the images of both views to tell apart


def test_swav():
    method, views = with_local("swav"), sizes()
    scores = cosine(projected(method, views), method.prototypes)
    codes = [sinkhorn(view, 0.05, 3) for view in scores[:V]]
    expected = mean([swapped_prediction(scores[i], codes[j], 0.1).item() for i, j in PAIRS])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_dino():
    method, views = with_local("dino"), sizes()
    student = method.prototypes(projected(method, views))
    targets = sharpened(method.target(views[:V]), method.centre, 0.04)
    expected = mean([cross_entropy(student[i], targets[j], 0.1).item() for i, j in PAIRS])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-4)


def test_resa():
    method, views = with_local("resa"), sizes()
    z, h = projected(method, views), method.encoder(torch.cat(views[:V]))[:8]
    target = method.projector(method.encoder(torch.cat(views[:V]))).unflatten(0, (V, 8))  # before the first step
    assignment = sinkhorn(cosine(h, h), 0.05, 3)
    expected = mean([resa(z[i], target[j], assignment, 0.4).item() for i, j in PAIRS])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_lejepa():
    method, views = with_local("lejepa", sigreg=0.5), sizes()
    z = projected(method, views)
    away = mean([(view - (z[0] + z[1]) / 2).square().mean().item() for view in z])
    expected = (away + sigreg(z, method.directions.rows, 17, 3.0).item()) / 2
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_visreg():
    method, views = with_local("visreg", regularisation=0.5), sizes()
    z = projected(method, views)
    away = mean([(view - (z[0] + z[1]) / 2).square().mean().item() for view in z])
    expected = (away + sum(visreg_terms(z, method.directions.rows)).item()) / 2
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)


# The machinery


@EVERY
def test_parts_give_the_whole_batchs_loss_and_gradients(name: str):
    def found(most: int) -> dict[str, Tensor]:
        method = with_local(name).double()
        views = [view.double() for view in sizes()]
        parts = distributed.parts_of(8, most)
        loss, stats = gradients(
            method, lambda part: [v[part.start : part.stop] for v in views], parts, None, contextlib.nullcontext(), True
        )
        return {"loss": loss, **stats, **{n: p.grad for n, p in method.named_parameters() if p.grad is not None}}

    whole, parted = found(0), found(3)
    assert whole.keys() == parted.keys() and len(whole) > 8
    for key in whole:
        torch.testing.assert_close(parted[key], whole[key], atol=1e-10, rtol=1e-10, msg=lambda m, k=key: k + m)


def test_operations_are_the_mean_over_views_of_both_sizes():
    torch.manual_seed(0)
    method = METHODS["swav"](CNN(3, widths=(4, 8, 8), read=2), METHODS["swav"].Settings())
    large, tiny = training_flops(method, 2, 3, 24, 24), training_flops(method, 2, 3, 16, 16)
    method.local_views = L
    assert training_flops(method, V, 3, 24, 24, 1, (16, 16)) == pytest.approx((V * large + L * tiny) / (V + L))


LOCAL = ViewSettings(local_views=L, local_crop_max=0.5)
TINY = Recipe(
    method="swav", data="shapes", subset=192, batch_size=64, epochs=2, views=V, augmentation=LOCAL,
    normalisation=data.PUBLISHED["shapes"],
)  # fmt: skip


def test_the_estimate_counts_them():
    images = data.load("shapes")[0].first(192)

    def memory(recipe: Recipe) -> int:
        state = State(recipe, images, torch.device("cpu"))
        return estimate(recipe, images, state.method, state.optimizers).memory

    without = dataclasses.replace(TINY, augmentation=ViewSettings())
    assert memory(TINY) > memory(without) + 1_000_000


def test_other_methods_refuse_them():
    match = "local_views must be 0 for method 'byol', not 3: dino, lejepa, resa, simclr, swav, visreg take them"
    with pytest.raises(InputError, match=match):
        Recipe(method="byol", augmentation=LOCAL)
    assert Recipe.from_dict(TINY.to_dict()) == TINY and TINY.all_views == V + L


class Picky(CNN):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] >= 20, "too small"
        return super().forward(x)


def test_an_encoder_that_does_not_take_their_size_says_so_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENCODERS, "picky", lambda channels, size, regions: Picky(channels, regions, (4, 8, 8), read=2))
    images, device = data.load("shapes")[0].first(192), torch.device("cpu")
    match = "'picky' does not accept 16 × 16 px: too small; --local-resolution 1 makes the views as large as the images"
    with pytest.raises(InputError, match=match):
        State(dataclasses.replace(TINY, encoder="picky"), images, device)
    larger = dataclasses.replace(LOCAL, local_resolution=0.7)
    State(dataclasses.replace(TINY, encoder="picky", augmentation=larger), images, device)


@pytest.fixture(scope="module")
def straight(all_narrow: None, tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    return crlf.pretrain(TINY, out=tmp_path_factory.mktemp("local"), device="cpu")


@pytest.mark.usefixtures("all_narrow")
def test_a_run_says_what_it_saw(straight: crlf.Run):
    state = State(TINY, data.load("shapes")[0].first(192), torch.device("cpu"))
    scores, (n, rows, *shape) = straight.scores, straight.array("views.npy").shape
    assert (n, rows, shape) == (10, 1 + V + L, [3, 24, 24])
    assert scores["views_seen"] == 6 * 64 * (V + L)
    assert scores["pflop"] == pytest.approx(scores["views_seen"] * flops_of_view(TINY, state.method, 3, 32, 32) / 1e15)
    assert scores["pflop"] < scores["views_seen"] * training_flops(state.method, V, 3, 24, 24, 1, (24, 24)) / 1e15


@pytest.mark.usefixtures("all_narrow")
def test_a_resumed_run_equals_a_straight_one(straight: crlf.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loss, seen = METHODS["swav"].loss, []

    def stopping(method: Method, *projections: Tensor, **others):
        seen.append(projections[0].shape)
        if len(seen) == 5:
            raise Interrupted(130, "stop")
        return loss(method, *projections, **others)

    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(METHODS["swav"], "loss", stopping)
        crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert {shape[0] for shape in seen} == {V + L}
    resumed = crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    one, other = straight.tensors("encoder_simclr.pth"), resumed.tensors("encoder_simclr.pth")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (straight.array("loss.npy") == resumed.array("loss.npy")).all()
