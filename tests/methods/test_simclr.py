"""NT-Xent against a double loop and closed forms; SimCLR's gradients and batch statistics."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf import encoders
from crlf.errors import InputError
from crlf.methods import negatives
from crlf.methods.simclr import SimCLR, SimCLRSettings, nt_xent, nt_xent_views


def double_loop(z: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term, over V views: z is (V, B, P)."""
    views, batch, _ = z.shape
    unit = [[(row / row.norm()).tolist() for row in view] for view in z.double()]

    def similarity(a: tuple[int, int], b: tuple[int, int]) -> float:
        return math.exp(sum(p * q for p, q in zip(unit[a[0]][a[1]], unit[b[0]][b[1]], strict=True)) / temperature)

    terms = []
    everyone = [(v, i) for v in range(views) for i in range(batch)]
    for anchor in everyone:
        for positive in everyone:
            if positive[1] == anchor[1] and positive != anchor:
                others = sum(similarity(anchor, other) for other in everyone if other[1] != anchor[1])
                s = similarity(anchor, positive)
                terms.append(-math.log(s / (s + others)))
    return sum(terms) / len(terms)


def projections(views: int, batch: int, width: int = 8, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(views, batch, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("batch", [2, 3, 17])
def test_equals_a_double_loop(batch: int, temperature: float):
    z = projections(2, batch)
    assert abs(nt_xent(z[0], z[1], temperature).item() - double_loop(z, temperature)) < 1e-10


@pytest.mark.parametrize("views", [3, 4])
def test_many_views_equal_a_double_loop(views: int):
    z = projections(views, 5)
    assert abs(nt_xent_views(z, 0.3).item() - double_loop(z, 0.3)) < 1e-10


def test_gradcheck():
    z1, z2 = projections(2, 4).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("logits", [1, 100, 600])
def test_a_few_rows_at_a_time_equal_all_at_once(monkeypatch, views: int, logits: int):
    z = projections(views, 19).requires_grad_()
    expected = nt_xent_views(z, 0.2)
    expected.backward()
    gradient, z.grad = z.grad, None
    monkeypatch.setattr(negatives, "LOGITS", logits)
    loss = nt_xent_views(z, 0.2)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(z.grad, gradient, rtol=1e-9, atol=1e-15)


@pytest.mark.long
def test_memory_does_not_grow_with_the_square_of_the_batch():
    """16,384 projections: all logits and their gradients at once would be above 4 GB."""
    code = """if True:
        import resource, torch
        from crlf.methods.simclr import nt_xent
        z1, z2 = torch.randn(2, 8192, 16, requires_grad=True)
        nt_xent(torch.ones(4, 4), torch.ones(4, 4), 0.2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nt_xent(z1, z2, 0.2).backward()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    megabytes = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert megabytes < 900


def test_equal_projections_give_the_chance_level():
    z = torch.ones(6, 4, dtype=torch.float64)
    assert abs(nt_xent(z, z, 0.2).item() - math.log(2 * 6 - 1)) < 1e-12


def test_perfect_projections_in_closed_form():
    """Orthogonal images, identical views: each row has one similarity of 1 and 2B - 2 of 0."""
    z = torch.eye(5, dtype=torch.float64)
    expected = math.log(1 + 8 * math.exp(-1 / 0.5))
    assert abs(nt_xent(z, z, 0.5).item() - expected) < 1e-12


def test_one_duplicated_row_is_a_negative_that_cannot_be_told_apart():
    z = torch.eye(4, dtype=torch.float64)
    z[3] = z[2]  # images 2 and 3 have the same projection
    assert abs(nt_xent(z, z, 0.5).item() - double_loop(torch.stack([z, z]), 0.5)) < 1e-12
    assert nt_xent(z, z, 0.01).item() == pytest.approx(0.5 * math.log(3), abs=1e-9)  # half of the rows guess among 3


def test_it_does_not_depend_on_length_order_or_side():
    z1, z2 = projections(2, 9)
    loss = nt_xent(z1, z2, 0.2)
    torch.testing.assert_close(nt_xent(3 * z1, 0.1 * z2, 0.2), loss)
    torch.testing.assert_close(nt_xent(z2, z1, 0.2), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.2), loss)
    assert nt_xent(z1, z2[order], 0.2) != pytest.approx(loss.item(), abs=1e-3)  # wrong pairs are another loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    z1, z2 = projections(2, 64, 32, dtype=torch.float32).to(dtype)
    loss = nt_xent(z1, z2, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nt_xent(z1.double(), z2.double(), 0.05).item(), rel=1e-5)


def test_autocast_leaves_the_logits_alone():
    z1, z2 = projections(2, 64, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent(z1, z2, 0.05).item() == pytest.approx(nt_xent(z1, z2, 0.05).item(), rel=1e-6)
        loss = nt_xent(z1, z2, 0.05)
    assert loss.item() == pytest.approx(nt_xent(z1, z2, 0.05).item(), rel=1e-6)


def test_small_temperature_and_zero_rows_stay_finite():
    z = projections(2, 8, dtype=torch.float32).requires_grad_()
    spoiled = z * torch.tensor([0.0, *[1.0] * 7])[:, None]
    loss = nt_xent(spoiled[0], spoiled[1], 0.001)
    loss.backward()
    assert loss.isfinite() and z.grad is not None and z.grad.isfinite().all()


def test_a_batch_of_one_is_an_error_that_says_why():
    with pytest.raises(InputError, match="at least 2 images in a batch, not 1: the others are the negatives"):
        nt_xent(torch.ones(1, 4), torch.ones(1, 4), 0.5)


@pytest.mark.parametrize("shapes", [((4, 8), (5, 8)), ((4, 8), (4, 9)), ((4, 8, 1), (4, 8, 1))])
def test_shapes_that_differ_are_an_error(shapes: tuple):
    with pytest.raises(InputError, match="must both be"):
        nt_xent(torch.ones(shapes[0]), torch.ones(shapes[1]), 0.5)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("nan")}, {"hidden": 0}])
def test_wrong_settings_name_themselves(wrong: dict):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SimCLRSettings(**wrong)


def small_simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(encoders.build("cnn", 3, 16), SimCLRSettings(hidden=16, projection=8))


def small_views(views: int = 2) -> list[Tensor]:
    return list(torch.randn(views, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def test_forward_is_projector_of_encoder_under_nt_xent():
    method, views = small_simclr(), small_views()
    loss, stats = method(views)
    z = method.projector(method.encoder(torch.cat(views)))
    assert loss.item() == pytest.approx(double_loop(z.detach().view(2, 8, -1), 0.2), rel=1e-5)
    assert stats == {}


def test_batch_norm_sees_both_views_at_once():
    method, seen = small_simclr(), []
    norm = next(m for m in method.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    method(small_views())
    assert seen == [16]


@pytest.mark.parametrize("views", [2, 4])
def test_gradient_reaches_every_weight(views: int):
    method = small_simclr()
    method(small_views(views))[0].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_few_steps_lower_the_loss_on_a_fixed_batch():
    method, views = small_simclr(), small_views()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        loss = method(views)[0]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_alike_views_cost_less_than_unlike_ones():
    z = projections(2, 32, dtype=torch.float32)
    near = F.normalize(z[0], dim=1) + 0.1 * F.normalize(z[1], dim=1)
    assert nt_xent(z[0], near, 0.2) < nt_xent(z[0], z[1], 0.2) - 1
