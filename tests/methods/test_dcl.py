"""The decoupled loss against a loop over its equation, some rows at a time, and at chance."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from references import cos, draw, mean, near
from torch import Tensor

from crlf.errors import InputError
from crlf.methods import negatives
from crlf.methods.dcl import dcl


def dcl_loop(z: Tensor, temperature: float) -> float:
    V, B, _ = z.shape
    terms = []
    for i, a, b in [(i, a, b) for i in range(B) for a, b in permutations(range(V), 2)]:
        negatives = sum(
            math.exp(cos(z[a, i], z[v, j]) / temperature) for v in range(V) for j in range(B) if j != i
        )  # equation 6: the positive is not in this sum
        terms.append(-cos(z[a, i], z[b, i]) / temperature + math.log(negatives))
    return mean(terms)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_dcl_equals_a_loop(views: int, temperature: float):
    assert near(dcl(draw(views, 5, 6), temperature), dcl_loop(draw(views, 5, 6), temperature))


def test_dcl_some_rows_at_a_time_equals_all_at_once(monkeypatch):
    z = draw(3, 7, 4).requires_grad_()
    expected = dcl(z, 0.2)
    (gradient,) = torch.autograd.grad(expected, z)
    monkeypatch.setattr(negatives, "LOGITS", 100)
    loss = dcl(z, 0.2)
    assert near(loss, expected.item())
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], gradient, rtol=1e-9, atol=1e-12)


def test_dcl_at_chance_and_with_one_image():
    assert near(dcl(torch.ones(3, 5, 2).double(), 0.3), math.log(3 * 4))
    with pytest.raises(InputError, match="at least 2 images"):
        dcl(torch.ones(2, 1, 4), 0.5)
