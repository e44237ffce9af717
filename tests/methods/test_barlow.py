"""Barlow Twins' loss on matrices that are known, and against a loop over its equation."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from references import draw, mean
from small_methods import small, views_of
from torch import Tensor

from crlf.methods.barlow import barlow_twins


def orthogonal_features(batch: int, width: int) -> Tensor:
    """Features of mean 0 and variance 1 that do not correlate: columns of a Fourier matrix."""
    t = torch.arange(batch, dtype=torch.float64)[:, None] + 0.5
    return math.sqrt(2) * torch.cos(math.pi * t * torch.arange(1, width + 1) / batch)


def test_barlow_on_orthogonal_features():
    """The correlation matrix is then known: identity, minus it, or a permutation of it."""
    z = orthogonal_features(64, 5)
    near_1 = 1 / (1 + 1e-5)  # the epsilon beside the variance
    assert barlow_twins(z, 3 * z + 7, 0.005).item() == pytest.approx(0, abs=1e-9)
    assert barlow_twins(z, -z, 0.005).item() == pytest.approx(5 * (1 + near_1) ** 2, rel=1e-9)
    shifted = z.roll(1, dims=1)  # every feature correlates with another alone
    assert barlow_twins(z, shifted, 0.005).item() == pytest.approx(5 + 0.005 * 5 * near_1**2, rel=1e-9)


def test_barlow_equals_a_loop():
    z1, z2 = draw(7, 3), draw(7, 3, seed=1)
    loss = 0.0
    for i in range(3):
        for j in range(3):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = (a @ b / math.sqrt(float(a @ a) * float(b @ b))).item()
            loss += (1 - c) ** 2 if i == j else 0.02 * c**2
    assert barlow_twins(z1, z2, 0.02).item() == pytest.approx(loss, rel=1e-4)


def test_barlow_takes_each_pair_of_views():
    method, views = small("barlow"), views_of(3)
    z = method.projector(method.encoder(torch.cat(views))).unflatten(0, (3, 8))
    expected = mean([barlow_twins(z[i], z[j], 0.005).item() for i, j in combinations(range(3), 2)])
    assert method(views)[0].item() == pytest.approx(expected, rel=1e-5)
