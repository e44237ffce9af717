"""SIGReg against the closed form of its integral and a loop, LeJEPA's prediction, and directions that resume."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from references import draw, mean, near
from small_methods import small, views_of

from crlf.methods.base import unit
from crlf.methods.lejepa import Directions, prediction, sigreg


def statistic(x: list[float]) -> float:
    """Epps and Pulley's of a sample, in closed form: the integral is over all t."""
    B = len(x)
    pairs = sum(math.exp(-((a - b) ** 2) / 2) for a in x for b in x) / B**2
    singles = sum(math.exp(-(a**2) / 4) for a in x) / B
    return B * math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * singles + 1 / math.sqrt(3))


def test_sigreg_is_the_integral():
    """With knots close enough and far enough."""
    z, directions = draw(2, 6, 4), unit(draw(3, 4, seed=1))
    expected = mean([statistic((view @ d).tolist()) for view in z for d in directions])
    assert sigreg(z, directions, knots=400, furthest=12.0).item() == pytest.approx(expected, rel=1e-9)
    assert sigreg(z, directions, knots=17, furthest=3.0).item() == pytest.approx(expected, rel=0.03)


def test_sigregs_rule_equals_a_loop():
    z, directions = draw(1, 5, 4), unit(draw(1, 4, seed=1))
    x, terms = (z[0] @ directions[0]).tolist(), []
    for t in (0.0, 1.5, 3.0):
        real = mean([math.cos(t * value) for value in x]) - math.exp(-(t**2) / 2)
        imaginary = mean([math.sin(t * value) for value in x])
        terms.append((real**2 + imaginary**2) * math.exp(-(t**2) / 2))
    assert near(sigreg(z, directions, 3, 3.0), 5 * 2 * 1.5 * (terms[0] / 2 + terms[1] + terms[2] / 2))


def test_sigreg_prefers_a_normal_distribution():
    directions = unit(draw(64, 4, seed=1))
    normal = draw(1, 4096, 4)
    others = (normal.sign(), 2 * normal, normal + 1, 0 * normal)
    assert sigreg(normal, directions, 17, 3.0) < 3  # 1.06 is expected: the root of 2 pi, times 1 - 1 / the root of 3
    assert min(sigreg(z, directions, 17, 3.0).item() for z in others) > 30


def test_prediction_equals_a_loop():
    z = draw(3, 5, 4)
    centre = z.mean(dim=0)
    terms = [(a - b).item() ** 2 for view in z for a, b in zip(view.flatten(), centre.flatten(), strict=True)]
    assert near(prediction(z, centre), mean(terms))


def test_it_is_what_the_authors_code_gives():
    """Their code gave these numbers for the same projections and directions."""
    z = draw(3, 6, 4)
    assert near(sigreg(z, unit(draw(5, 4, seed=1)), 17, 3.0), 0.9834806312041892)
    assert near(prediction(z, z.mean(dim=0)), 0.7737632394593896)


def test_it_weighs_its_terms():
    loss, stats = small("lejepa", sigreg=0.25)(views_of(3))
    assert loss.item() == pytest.approx(0.75 * stats["prediction"].item() + 0.25 * stats["sigreg"].item(), rel=1e-5)


def test_directions_differ_from_step_to_step_and_go_on_from_their_state():
    torch.manual_seed(0)
    one, seen = Directions(8, 5), []
    for _ in range(3):
        seen.append(one.rows.clone())
        one.renew()
    assert all((a @ b.T).diagonal().abs().max() < 0.99 for a, b in pairwise(seen))
    torch.testing.assert_close(one.rows.norm(dim=1), torch.ones(8))
    torch.manual_seed(1)
    other = Directions(8, 5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.rows, one.rows)
    for directions in (one, other):
        directions.renew()
    assert torch.equal(other.rows, one.rows) and not torch.equal(one.rows, seen[0])


def test_a_step_renews_the_directions_in_place():
    """A graph that is replayed reads the memory that it was recorded on."""
    for name in ("lejepa", "visreg"):
        method = small(name)
        rows, before = method.directions.rows, method.directions.rows.clone()
        method.after_step(0.5)
        assert method.directions.rows is rows and not torch.equal(rows, before)
