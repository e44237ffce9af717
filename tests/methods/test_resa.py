"""ReSA's loss in a loop and as the authors' code has it, and what its assignment is made of."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from references import cos, cross_entropy_loop, draw, mean, near
from small_methods import small, views_of

from crlf.methods.base import cosine
from crlf.methods.resa import resa
from crlf.methods.swav import sinkhorn


def test_the_loss_equals_a_loop():
    z, target, assignment = draw(5, 4), draw(5, 4, seed=1), draw(5, 5, seed=2).softmax(dim=1)
    cosines = torch.tensor([[cos(a, b) for b in target] for a in z], dtype=torch.float64)
    there = cross_entropy_loop(cosines, assignment, 0.4)
    back = cross_entropy_loop(cosines.T, assignment.T, 0.4)
    assert near(resa(z, target, assignment, 0.4), (there + back) / 2)


def test_it_is_what_the_authors_code_gives():
    """Their code gave this number for the same projections and encodings."""
    z, target, h, target_h = draw(2, 6, 4), draw(2, 6, 4, seed=1), draw(6, 3, seed=2), draw(6, 3, seed=3)
    assignment = sinkhorn(cosine(h, target_h), 0.05, 3)
    found = mean([resa(z[a], target[b], assignment, 0.4).item() for a, b in permutations(range(2), 2)])
    assert found == pytest.approx(2.329177435376285, rel=1e-9)


def test_the_first_views_encodings_assign_and_all_pairs_are_compared():
    method, views = small("resa"), views_of(3)
    h = method.encoder(torch.cat(views))
    z = method.projector(h).unflatten(0, (3, 8))
    assert torch.equal(h, method.target.networks(torch.cat(views)))  # before the first step both are the same
    assignment = sinkhorn(cosine(h[:8], h[:8]), 0.05, 3)
    expected = mean([resa(z[a], z[b], assignment, 0.4).item() for a, b in permutations(range(3), 2)])
    loss, stats = method(views)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert stats["own_share"].item() == pytest.approx(assignment.diagonal().mean().item(), rel=1e-5)


def test_images_that_are_alike_share_a_cluster():
    """Four images in two pairs: each image belongs half to itself and half to its twin."""
    h = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    halves = torch.block_diag(*[torch.full((2, 2), 0.5, dtype=torch.float64)] * 2)
    torch.testing.assert_close(sinkhorn(cosine(h, h), 0.05, 3), halves, atol=1e-8, rtol=0)


def test_no_gradient_reaches_the_assignment():
    method = small("resa")
    z, _, h, target_h = method.project(views_of())
    assert z.requires_grad and not h.requires_grad and not target_h.requires_grad
