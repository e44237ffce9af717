"""NNCLR's neighbours and loss against a loop; they are looked for among earlier images."""

from __future__ import annotations

import math

import pytest
import torch
from references import cos, draw, mean, near
from small_methods import SIZE, small, views_of

from crlf.methods.base import unit
from crlf.methods.nnclr import nearest, nnclr


def test_nnclrs_neighbours_and_loss_equal_a_loop():
    z, support, p = draw(5, 6), draw(11, 6, seed=1), draw(5, 6, seed=2)
    chosen = [max(range(11), key=lambda k, i=i: cos(z[i], support[k])) for i in range(5)]
    assert len(set(chosen)) > 1
    neighbours = nearest(z, support)
    assert torch.equal(neighbours, support[chosen])
    terms = []
    for i in range(5):
        others = [math.exp(cos(support[chosen[i]], p[j]) / 0.2) for j in range(5)]
        terms.append(-math.log(others[i] / sum(others)))
    assert near(nnclr(neighbours, p, 0.2), mean(terms))


def test_nnclr_looks_among_earlier_images_and_queues_the_first_view():
    method, views = small("nnclr"), views_of(2)
    before = method.queue.rows
    loss, _ = method(views)
    again = small("nnclr")
    z = again.projector(again.encoder(torch.cat(views)))
    p = again.predictor(z).unflatten(0, (2, 8))
    n = nearest(z, before).unflatten(0, (2, 8))
    assert loss.item() == pytest.approx((nnclr(n[0], p[1], 0.1) + nnclr(n[1], p[0], 0.1)).item() / 2, rel=1e-5)
    torch.testing.assert_close(method.queue.rows, torch.cat([unit(z[:8]), before[: SIZE - 8]]))
