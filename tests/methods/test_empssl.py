"""EMP-SSL's coding rate in closed form and in both of its sizes, its agreement in a loop, and its loss."""

from __future__ import annotations

import math

import pytest
import torch
from references import cos, draw, mean, near
from small_methods import small, views_of

from crlf.methods.base import unit
from crlf.methods.empssl import EMPSSLSettings, agreement, coding_rate


@pytest.mark.parametrize("images, width", [(5, 3), (3, 5), (4, 4)])
def test_the_coding_rate_is_the_determinant_of_the_paper(images: int, width: int):
    """Whichever of the two matrices is smaller."""
    z = unit(draw(2, images, width))
    scale = width / (images * 0.2)
    rates = [torch.logdet(torch.eye(width, dtype=torch.float64) + scale * view.T @ view).item() / 2 for view in z]
    assert near(coding_rate(z, 0.2), mean(rates))


def test_the_coding_rate_in_closed_form():
    """Of images in orthogonal directions, each alone: the most there is; and of images that are all alike."""
    apart = torch.eye(4, dtype=torch.float64)[None]
    assert near(coding_rate(apart, 0.5), 4 / 2 * math.log(1 + 1 / 0.5))
    alike = torch.eye(4, dtype=torch.float64)[:1].expand(6, 4)[None]
    assert near(coding_rate(alike, 0.5), math.log(1 + 4 / 0.5) / 2)


def test_the_agreement_equals_a_loop():
    z = draw(3, 5, 4)
    assert near(agreement(z), mean([cos(z[v, i], z[:, i].mean(dim=0)) for v in range(3) for i in range(5)]))


def test_it_is_what_the_authors_code_gives():
    """Their code gave these numbers for the same projections."""
    z = unit(draw(3, 5, 4))
    assert near(agreement(z), 0.5101100322913842)
    assert near(-200 * agreement(z) - coding_rate(z, 0.2), -104.94463395360157)


def test_it_weighs_its_terms():
    loss, stats = small("empssl", invariance=3.0, distortion=0.4)(views_of(3))
    assert loss.item() == pytest.approx(-3 * stats["agreement"].item() - stats["coding_rate"].item(), rel=1e-5)
    s = EMPSSLSettings()
    assert (s.invariance, s.distortion, s.hidden, s.projection) == (200, 0.2, 4096, 1024)
