"""SimSiam's loss against a loop over its equation, and over all pairs of views."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from references import cos, draw, mean, near
from small_methods import small, views_of

from crlf.methods.simsiam import negative_cosine


def test_simsiam_equals_a_loop_and_holds_the_projection_still():
    p, z = draw(5, 6).requires_grad_(), draw(5, 6, seed=1).requires_grad_()
    loss = negative_cosine(p, z)
    assert near(loss, -mean([cos(a, b) for a, b in zip(p, z, strict=True)]))
    loss.backward()
    assert z.grad is None and p.grad is not None


def test_views_are_compared_with_every_other():
    method, views = small("simsiam"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views)))
    p = method.predictor(z).unflatten(0, (3, 8))
    z = z.unflatten(0, (3, 8))
    expected = mean([negative_cosine(p[i], z[j]).item() for i, j in permutations(range(3), 2)])
    found, stats = method(views)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert 0 < stats["spread"] < 1.1
