"""SwAV's codes by hand and as the paper computes them, and its swapped prediction."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from references import cross_entropy_loop, draw, mean, near
from small_methods import small, views_of

from crlf.methods.base import unit
from crlf.methods.swav import sinkhorn, swapped_prediction


def test_sinkhorns_rows_and_columns():
    scores = draw(12, 5).clamp(-1, 1)
    codes = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(12, dtype=torch.float64))
    columns = [(sinkhorn(scores, 0.05, n).sum(dim=0) - 12 / 5).abs().max().item() for n in (1, 3, 30, 3000)]
    assert columns[0] > columns[1] > columns[2] > columns[3] and columns[3] < 1e-3


def test_sinkhorn_equals_the_papers_on_the_exponentials():
    scores = draw(6, 4)
    codes = (scores / 0.5).exp()
    for _ in range(3):
        codes = codes / codes.sum(dim=0, keepdim=True) / 4
        codes = codes / codes.sum(dim=1, keepdim=True) / 6
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3), 6 * codes)


def test_sinkhorn_parts_what_softmax_would_put_into_one_cluster():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.7, 0.6], [0.6, 0.5]])
    assert scores.argmax(dim=1).tolist() == [0, 0, 0, 0]
    assert sinkhorn(scores, 0.05, 10).argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert sinkhorn(1000 * scores, 0.001, 3).isfinite().all()


def test_sinkhorn_gives_no_gradient():
    assert not sinkhorn(draw(4, 3).requires_grad_(), 0.05, 3).requires_grad


def test_cross_entropy_equals_a_loop():
    scores, target = draw(4, 3), draw(4, 3, seed=1).softmax(dim=1)
    assert near(swapped_prediction(scores, target, 0.2), cross_entropy_loop(scores, target, 0.2))


def test_swav_swaps():
    method, views = small("swav"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    scores = [unit(view) @ unit(method.prototypes).T for view in z]
    codes = [sinkhorn(s, 0.05, 3) for s in scores]
    expected = mean([swapped_prediction(scores[i], codes[j], 0.1).item() for i, j in permutations(range(3), 2)])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)
