"""What losses share: pairs of views, cosines, float32, and the measure of collapse."""

from __future__ import annotations

import pytest
import torch
from references import cos, draw, mean, near

from crlf.methods.base import cosine, over_pairs, spread, unit


def test_pairs_are_all_ordered_pairs_of_different_views():
    a, b = draw(4), draw(4, seed=1)
    expected = mean([(a[i] * b[j] ** 2).item() for i in range(4) for j in range(4) if i != j])
    assert near(over_pairs(lambda x, y: x * y**2, a, b), expected)


def test_cosine_and_unit_against_a_loop():
    a, b = draw(2, 3, 4), draw(5, 4, seed=1)
    for v, i, j in [(v, i, j) for v in range(2) for i in range(3) for j in range(5)]:
        assert near(cosine(a, b)[v, i, j], cos(a[v, i], b[j]))
    torch.testing.assert_close(unit(a).norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype: torch.dtype):
    z = draw(6, 16).to(dtype)
    exact = cosine(z.double(), z.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine(z, z)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # so that autocast would have shown
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 1e-6


def test_spread_is_0_when_all_are_equal_and_1_when_they_point_everywhere():
    assert spread(draw(1, 8).expand(100, 8)).item() < 1e-6
    assert spread(draw(5, 1000, 16)).item() == pytest.approx(1, abs=0.01)
    line = torch.cat([draw(1, 16).expand(50, 16), -draw(1, 16).expand(50, 16)])
    assert spread(10 * line) == pytest.approx(spread(line).item())
