"""BYOL's loss against a loop over its equation, and over all pairs of views."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from references import cos, draw, mean, near
from small_methods import small, views_of

from crlf.methods.byol import byol


def test_byol_equals_a_loop_and_is_2_less_2_cosines():
    q, z = draw(5, 6), draw(5, 6, seed=1)
    assert near(byol(q, z), mean([2 - 2 * cos(a, b) for a, b in zip(q, z, strict=True)]))
    assert near(byol(q, 7 * q), 0) and near(byol(q, -q), 4)


def test_views_are_compared_with_every_other():
    method, views = small("byol"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views)))
    p = method.predictor(z).unflatten(0, (3, 8))
    z = method.target(views)
    expected = mean([byol(p[i], z[j]).item() for i, j in permutations(range(3), 2)])
    found, stats = method(views)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert 0 < stats["spread"] < 1.1
