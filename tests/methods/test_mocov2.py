"""MoCo's loss against a loop over its equation; the queue is read before it is filled."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from references import cos, draw, mean, near
from small_methods import SIZE, small, views_of

from crlf.methods.base import unit
from crlf.methods.mocov2 import moco


def test_moco_equals_a_loop():
    q, k, queue = draw(4, 6), draw(4, 6, seed=1), draw(9, 6, seed=2)
    terms = []
    for i in range(4):
        right = math.exp(cos(q[i], k[i]) / 0.3)
        terms.append(-math.log(right / (right + sum(math.exp(cos(q[i], row) / 0.3) for row in queue))))
    assert near(moco(q, k, queue, 0.3), mean(terms))
    same = torch.ones(9, 2).double()
    assert near(moco(same[:4], same[:4], same, 0.3), math.log(10))


def test_mocov2_reads_the_queue_before_it_fills_it():
    method, views = small("mocov2"), views_of(3)
    before = method.queue.rows
    loss, _ = method(views)
    q = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    k = small("mocov2").target(views)
    expected = mean([moco(q[i], k[j], before, 0.1).item() for i, j in permutations(range(3), 2)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(method.queue.rows, unit(k.flatten(0, 1))[:SIZE])  # of 24 keys
