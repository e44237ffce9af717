"""The supervised contrastive loss against a loop over its equation."""

from __future__ import annotations

import math

import pytest
import torch
from references import cos, draw, mean, near
from torch import Tensor

from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.methods.supcon import sup_con


def test_it_alone_has_labels():
    assert [name for name, method in METHODS.items() if issubclass(method, SupervisedMethod)] == ["supcon"]


def sup_con_loop(z: Tensor, labels: list[int], temperature: float) -> float:
    V, B, _ = z.shape
    everyone = [(v, i) for v in range(V) for i in range(B)]
    terms = []
    for a in everyone:
        total = sum(math.exp(cos(z[a], z[b]) / temperature) for b in everyone if b != a)
        positives = [b for b in everyone if b != a and labels[b[1]] == labels[a[1]]]
        terms.append(-mean([math.log(math.exp(cos(z[a], z[p]) / temperature) / total) for p in positives]))
    return mean(terms)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0] * 6])
@pytest.mark.parametrize("views", [2, 3])
def test_supcon_equals_a_loop(views: int, labels: list[int]):
    z = draw(views, 6, 5)
    assert near(sup_con(z, torch.tensor(labels), 0.3), sup_con_loop(z, labels, 0.3))


def test_supcons_gradient_is_finite_and_checks():
    z = draw(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sup_con(z, torch.tensor([0, 1, 0]), 0.5), z)
