"""VICReg's three terms by hand and over all pairs of views, and their weights."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from references import draw, mean, near
from small_methods import small, views_of

from crlf.methods.vicreg import VICRegSettings, vicreg_terms


def test_vicregs_terms_by_hand():
    """Two views of three images and two features."""
    a = torch.tensor([[0.0, 0.0], [0.3, 0.6], [0.6, 0.0]], dtype=torch.float64)
    b = a + torch.tensor([1.0, 0.0])
    invariance, variance, covariance = vicreg_terms(torch.stack([a, b]))
    assert near(invariance, 0.5)  # one feature of two differs, by 1
    hinges = [1 - math.sqrt(0.09 + 1e-4), 1 - math.sqrt(0.12 + 1e-4)]  # variances 0.09 and 0.12, over B - 1
    assert near(variance, 2 * mean(hinges))
    assert near(covariance, 0)
    skewed = torch.stack([a, a])
    skewed[0, :, 1] = a[:, 0]  # in one view the second feature repeats the first: covariance 0.09, twice
    assert near(vicreg_terms(skewed)[2], 2 * 0.09**2 / 2)


@pytest.mark.parametrize("views", [2, 4])
def test_vicreg_is_the_mean_of_the_papers_over_all_pairs(views: int):
    z = draw(views, 6, 3)
    terms = [[], [], []]
    for a, b in permutations(z, 2):
        terms[0].append(mean([((p - q) ** 2).mean().item() for p, q in zip(a, b, strict=True)]))
        terms[1].append(sum(F.relu(1 - (v.var(dim=0) + 1e-4).sqrt()).mean().item() for v in (a, b)))
        off = ~torch.eye(3, dtype=torch.bool)
        terms[2].append(sum(torch.cov(v.T)[off].square().sum().item() / 3 for v in (a, b)))
    for found, expected in zip(vicreg_terms(z), terms, strict=True):
        assert near(found, mean(expected))


def test_vicreg_weighs_its_terms():
    views = views_of()
    loss, stats = small("vicreg", invariance=3.0, variance=5.0, covariance=7.0)(views)
    terms = [stats[n] for n in ("invariance", "variance", "covariance")]
    assert loss.item() == pytest.approx(3 * terms[0].item() + 5 * terms[1].item() + 7 * terms[2].item(), rel=1e-5)
    s = VICRegSettings()
    assert (s.invariance, s.variance, s.covariance) == (25, 25, 1)
