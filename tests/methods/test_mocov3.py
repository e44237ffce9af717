"""MoCo v3's loss against a loop over its equation."""

from __future__ import annotations

import math

from references import cos, draw, mean, near

from crlf.methods.mocov3 import ctr


def test_mocov3_equals_a_loop():
    q, k = draw(5, 6), draw(5, 6, seed=1)
    terms = []
    for i in range(5):
        others = [math.exp(cos(q[i], k[j]) / 0.4) for j in range(5)]
        terms.append(-math.log(others[i] / sum(others)))
    assert near(ctr(q, k, 0.4), 2 * 0.4 * mean(terms))
