"""The schedule in closed form, Muon's update from its definition, and every optimizer on one problem."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from crlf import encoders
from crlf.errors import InputError
from crlf.optim import LARS, LARS_OF, OPTIMIZERS, Muon, OptimSettings, orthogonalise, rates, schedule, set_rates, split


def test_schedule_in_closed_form():
    assert schedule(0.0, 0.1) == 0
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == 1
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == pytest.approx(0, abs=1e-12)
    assert schedule(1.0, 0.1, final=0.25) == pytest.approx(0.25)
    assert schedule(0.325, 0.1) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [schedule(p, 0.0, 1.0) for p in (0, 0.3, 1)] == [1, 1, 1]


def test_schedule_never_jumps():
    values = [schedule(i / 1000, 0.1) for i in range(1001)]
    assert max(abs(a - b) for a, b in zip(values[1:], values[:-1], strict=True)) < 0.0101


def of_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return u * values @ vh


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_vectors(shape: tuple[int, int]):
    g = 7 * of_singular_values(torch.logspace(0, -2, min(shape)), *shape)
    update = orthogonalise(torch.stack([g, -g]))[0]
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.65 and values.max() < 1.25
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    alignment = (u.mT @ update @ vh.mT).diagonal()  # u s v^T with every s near 1
    assert alignment.min() > 0.65


@pytest.mark.parametrize("smallest", [-1, -3, -6, -30])  # powers of ten; the last is of rank one
@pytest.mark.parametrize("shape", [(64, 576), (96, 96), (128, 27)])
def test_orthogonalise_is_the_iteration_of_its_definition(shape: tuple[int, int], smallest: int):
    g = of_singular_values(torch.logspace(0, smallest, min(shape)), *shape)
    x = g.double() / g.double().norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalise(g).double(), x, rtol=0, atol=2e-3 * x.abs().max().item())


def test_orthogonalise_leaves_nothing_where_nothing_was():
    assert orthogonalise(torch.zeros(4, 8)).abs().max() == 0


def test_muon_step_from_its_definition():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(12, 2, 3, 3))
    start = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    momentum = torch.zeros(12, 18)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        momentum = 0.9 * momentum + weight.grad.view(12, 18)
        update = orthogonalise(weight.grad.view(12, 18) + 0.9 * momentum)
        start = start * (1 - 0.1 * 0.5) - 0.1 * update.view_as(start)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), start)


def test_muon_scales_tall_matrices():
    weight = nn.Parameter(torch.zeros(32, 8))
    weight.grad = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    assert torch.linalg.svdvals(weight.detach()).median() == pytest.approx(2, rel=0.3)  # sqrt(32 / 8)


def test_muon_agrees_with_torchs_own():
    """torch.optim.Muon computes in bf16 and takes matrices only; there the two agree to bf16's rounding."""
    g = torch.randn(24, 10, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(torch.zeros(24, 10)), nn.Parameter(torch.zeros(24, 10))
    ours.grad, theirs.grad = g.clone(), g.clone()
    Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.0).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0).step()
    cosine = torch.nn.functional.cosine_similarity(ours.detach().flatten(), theirs.detach().flatten(), dim=0)
    assert cosine > 0.995


def test_lars_step_from_its_definition():
    """Equation 6: each weight's rate is trust |w| / (|g| + decay |w|), and the update has the decay's term in it."""
    g = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(scale * torch.randn(4, 3, generator=g)) for scale in (0.1, 1.0, 10.0)]
    optimizer = LARS([{"params": weights, "trust": 0.02, "weight_decay": 0.1}], lr=0.5, momentum=0.9)
    expected = [w.detach().clone() for w in weights]
    momenta = [torch.zeros(4, 3) for _ in weights]
    for _ in range(3):
        for i, w in enumerate(weights):
            w.grad = torch.randn(4, 3, generator=g)
            length, slope = (sum(x * x for x in t.flatten().tolist()) ** 0.5 for t in (expected[i], w.grad))
            rate = 0.02 * length / (slope + 0.1 * length)
            momenta[i] = 0.9 * momenta[i] + rate * (w.grad + 0.1 * expected[i])
            expected[i] = expected[i] - 0.5 * momenta[i]
        optimizer.step()
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.detach(), e)


def test_lars_does_not_feel_the_gradients_scale_but_norms_and_biases_do():
    moved = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        before = [p.detach().clone() for p in network.parameters()]
        settings = OptimSettings(optimizer="lars", lr=0.1)
        (optimizer,) = OPTIMIZERS["lars"](list(network.named_parameters()), settings)
        (scale * network(torch.randn(8, 4)).exp().sum()).backward()
        optimizer.step()
        moved.append([(p - b).norm().item() for p, b in zip(network.parameters(), before, strict=True)])
    assert moved[0][0] == pytest.approx(0.1 * 0.001 * before[0].norm().item(), rel=1e-3)
    assert moved[1][0] == pytest.approx(moved[0][0], rel=1e-3)
    assert moved[1][2:] == pytest.approx([100 * m for m in moved[0][2:]], rel=1e-3)  # plain SGD


def test_lars_leaves_norms_and_biases_undecayed():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    settings = OptimSettings(optimizer="lars", lr=0.1, weight_decay=0.5)
    (optimizer,) = OPTIMIZERS["lars"]([("weight", weight), ("bias", bias)], settings)
    weight.grad, bias.grad = torch.full((2, 2), 1e-6), torch.zeros(2)
    optimizer.step()
    assert weight[0, 0] < 1 - 1e-5 and torch.equal(bias, torch.ones(2))


@pytest.mark.parametrize("kind", LARS_OF)
def test_each_lars_is_that_of_its_code(kind: str):
    """Written from the formulas of each code; the rate falls, so that inside and outside of the momentum differ."""
    g = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(scale * torch.randn(4, 3, generator=g)) for scale in (0.0, 0.01, 1.0, 100.0)]
    optimizer = LARS([{"params": weights, "trust": 0.02, "weight_decay": 0.1}], lr=0.5, momentum=0.9, kind=kind)
    expected = [w.detach().clone() for w in weights]
    momenta = [torch.zeros(4, 3) for _ in weights]
    for step in range(4):
        rate = 0.5 / (step + 1)
        for i, w in enumerate(weights):
            w.grad = torch.randn(4, 3, generator=g)
            direction, length = w.grad + 0.1 * expected[i], expected[i].norm()
            divided_by = {
                "paper": w.grad.norm() + 0.1 * length, "simclr": direction.norm(), "barlow": direction.norm(),
                "solo-learn": w.grad.norm() + 0.1 * length,
            }[kind]  # fmt: skip
            share = 0.02 * length / divided_by if length > 0 else torch.tensor(1.0)
            if kind == "solo-learn":
                share = min(share / rate, torch.tensor(1.0)) if length > 0 else share
            if kind in ("paper", "simclr"):
                momenta[i] = 0.9 * momenta[i] + rate * share * direction
                expected[i] = expected[i] - momenta[i]
            else:
                momenta[i] = 0.9 * momenta[i] + share * direction
                expected[i] = expected[i] - rate * momenta[i]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.detach(), e)


def test_a_weight_of_norm_0_takes_the_whole_gradient():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([{"params": [weight], "trust": 0.001}], lr=0.5, momentum=0.0)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), -0.5))


def test_decay_all_reaches_biases_and_norms():
    bias = nn.Parameter(torch.ones(2))
    settings = OptimSettings(optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.5, decay_all=True)
    (optimizer,) = OPTIMIZERS["sgd"]([("bias", bias)], settings)
    bias.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.full((2,), 0.95))


@pytest.mark.parametrize(
    ("optimizer", "lr", "momentum", "decay"),
    [("muon", 0.02, 0.95, 0.1), ("adamw", 3e-3, 0.95, 0.0), ("sgd", 0.06, 0.9, 0.0), ("lars", 1.0, 0.9, 0.0)],
)
def test_each_optimizer_has_defaults_of_its_own(optimizer: str, lr: float, momentum: float, decay: float):
    settings = OptimSettings(optimizer=optimizer)
    assert (settings.lr, settings.momentum, settings.weight_decay) == (lr, momentum, decay)
    asked = OptimSettings(optimizer=optimizer, lr=0.5, momentum=0.5)
    assert (asked.lr, asked.momentum) == (0.5, 0.5)


def test_an_unknown_lars_is_refused():
    with pytest.raises(InputError, match="lars 'mine' is not known: choose from barlow, paper, simclr, solo-learn"):
        OptimSettings(lars="mine")


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_plain_or_nesterovs(momentum: float, nesterov: bool):
    """v <- m v + g, w <- w - lr v or w - lr (g + m v); Sutskever et al. 2013, as torch writes it. Its decay is in g."""
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, generator=g))
    expected, v = weight.detach().clone(), torch.zeros(4, 3)
    settings = OptimSettings(optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.2, nesterov=nesterov)
    (optimizer,) = OPTIMIZERS["sgd"]([("weight", weight)], settings)
    for _ in range(3):
        weight.grad = torch.randn(4, 3, generator=g)
        gradient = weight.grad + 0.2 * expected
        v = momentum * v + gradient
        expected = expected - 0.1 * (gradient + momentum * v if nesterov else v)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_the_learning_rate_is_scaled_to_the_batch_for_sgd_and_lars_alone():
    for name in OPTIMIZERS:
        settings = OptimSettings(optimizer=name, lr=0.3)
        assert settings.for_batch(256).lr == pytest.approx(0.3)
        expected = 0.6 if name in ("sgd", "lars") else 0.3
        assert settings.for_batch(512).lr == pytest.approx(expected)
        assert settings.for_batch(512).for_batch(512).lr == pytest.approx(expected)  # not twice
        assert OptimSettings(optimizer=name, lr=0.3, lr_per=0).for_batch(512).lr == 0.3
    assert OptimSettings(optimizer="sgd", lr=0.3, lr_per=128).for_batch(64).lr == pytest.approx(0.15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_follows_its_schedule_and_stays_off_norms_and_biases(name: str):
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizers = OPTIMIZERS[name](list(network.named_parameters()), OptimSettings(optimizer=name, weight_decay=0.04))
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):  # DINO's, from 0.04 to 0.4
        set_rates(optimizers, lr=1.0, decay=schedule(progress, 0.0, 10.0))
        for group in (group for o in optimizers for group in o.param_groups):
            matrices = all(p.ndim > 1 for p in group["params"])
            assert group["weight_decay"] == pytest.approx(expected if matrices else 0)
    set_rates(optimizers, lr=1.0, decay=schedule(0.7, 0.0, 1.0))
    assert {group["weight_decay"] for o in optimizers for group in o.param_groups} == {0.04, 0.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_holds_each_weight_once_and_lowers_a_loss(name: str):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    x, y = torch.randn(16, 3, 8, 8), torch.randint(2, (16,))
    settings = OptimSettings(optimizer=name, lr=0.01, weight_decay=0.1, trust=1.0)
    optimizers = OPTIMIZERS[name](list(network.named_parameters()), settings)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in network.parameters()}
    assert len(held) == len(list(network.parameters()))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert group["weight_decay"] == 0 or all(p.ndim > 1 for p in group["params"])
    losses = []
    for step in range(20):
        set_rates(optimizers, lr=schedule(step / 20, 0.1), decay=1.0)
        loss = nn.functional.cross_entropy(network(x), y)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_rates_are_a_warm_up_for_the_learning_rate_alone():
    settings = OptimSettings(warmup=0.2, final_lr=0.5, final_weight_decay=3.0)
    expected = {
        0.0: (0, 1),
        0.1: (0.5, 3 - 2 * (1 + math.cos(math.pi / 10)) / 2),
        0.6: (0.75, 3 - 2 * (1 + math.cos(0.6 * math.pi)) / 2),
        1.0: (0.5, 3),
    }
    for progress, (lr, decay) in expected.items():
        assert rates(settings, progress) == pytest.approx({"lr": lr, "decay": decay, "late": lr})


def test_set_rates_scales_each_groups_own_peak():
    network = encoders.build("cnn", 3, 32)
    optimizers = OPTIMIZERS["muon"](list(network.named_parameters()), OptimSettings(lr=0.02, vector_lr=0.004))
    set_rates(optimizers, lr=0.5, decay=1.0)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.01, 0.002]
    matrices, vectors = split(network.named_parameters())
    assert all(p.ndim == 4 for p in matrices) and all(p.ndim == 1 for p in vectors)


@pytest.mark.parametrize(
    "wrong",
    [{"optimizer": "moun"}, {"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"warmup": -0.1}, {"final_lr": 2.0},
     {"weight_decay": -1.0}, {"vector_lr": 0.0}, {"final_weight_decay": -1.0}, {"trust": 0.0}, {"lr_per": -1}],
)  # fmt: skip
def test_wrong_settings_name_themselves(wrong: dict):
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        OptimSettings(**wrong)
    assert "\n" not in str(caught.value)


def test_a_misspelt_optimizer_is_offered_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'muon'"):
        OptimSettings(optimizer="moun")


@pytest.mark.parametrize("name", ["muon", "lars"])
def test_a_step_makes_no_new_momentum(name: str, monkeypatch: pytest.MonkeyPatch):
    layer, made, zeros = nn.Linear(4, 3, bias=False), [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda *args, **options: made.append(0) or zeros(*args, **options))
    optimizers = OPTIMIZERS[name](list(layer.named_parameters()), OptimSettings(optimizer=name))
    layer.weight.grad = torch.ones(3, 4)
    for _ in range(3):
        optimizers[0].step()
    assert len(made) == 1


def test_muon_leaves_the_largest_matrices_to_adamw():
    large, wide, small = (nn.Parameter(torch.randn(*shape)) for shape in ((1025, 1030), (1025, 8), (8, 8)))
    named = [("large", large), ("wide", wide), ("small", small), ("bias", nn.Parameter(torch.zeros(8)))]
    matrices, rest = OPTIMIZERS["muon"](named, OptimSettings(weight_decay=0.1))
    assert [p is q for p, q in zip(matrices.param_groups[0]["params"], (wide, small), strict=True)] == [True, True]
    vectors, others = rest.param_groups
    assert others["params"][0] is large and others["weight_decay"] == 0.1 and others["base_lr"] == 3e-3
    assert vectors["weight_decay"] == 0.0
