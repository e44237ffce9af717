"""VISReg's terms in a loop and by hand, what moves their gradients, and their weights."""

from __future__ import annotations

import statistics

import pytest
import torch
from references import draw, mean, near
from small_methods import small, views_of

from crlf.methods.base import unit
from crlf.methods.visreg import visreg_terms


def test_the_terms_equal_a_loop():
    z, directions = draw(2, 6, 3), unit(draw(4, 3, seed=1))
    normal = statistics.NormalDist()
    quantiles = [normal.inv_cdf(i / 7) for i in range(1, 7)]
    scales, shapes, centres = [], [], []
    for view in z:
        means = [statistics.fmean(column) for column in view.T.tolist()]
        deviations = [statistics.pstdev(column) for column in view.T.tolist()]
        scales += [(1 - s) ** 2 for s in deviations]
        centres += [m**2 for m in means]
        even = (view - torch.tensor(means, dtype=torch.float64)) / torch.tensor(deviations, dtype=torch.float64)
        for direction in directions:
            shapes += [(x - q) ** 2 for x, q in zip(sorted((even @ direction).tolist()), quantiles, strict=True)]
    for found, expected in zip(visreg_terms(z, directions), (scales, shapes, centres), strict=True):
        assert near(found, mean(expected))


def test_it_is_what_the_authors_code_gives():
    """Their code gave these numbers for the same projections and directions."""
    found = visreg_terms(draw(3, 6, 4), unit(draw(5, 4, seed=1)))
    for term, expected in zip(found, (0.061620991790188116, 0.28750425983699257, 0.09469684919545762), strict=True):
        assert near(term, expected)


def test_shape_does_not_see_scale_or_place():
    z, directions = draw(2, 64, 3), unit(draw(16, 3, seed=1))
    moved = visreg_terms(5 * z + 2, directions)
    assert near(moved[1], visreg_terms(z, directions)[1].item())
    assert moved[0] > 1 and moved[2] > 1
    assert visreg_terms(z.sign(), directions)[1] > 2 * visreg_terms(z, directions)[1]


def test_scale_pulls_where_all_features_are_nearly_equal():
    """Where SIGReg's gradient vanishes, this one does not (the paper's reason for it)."""
    sizes = []
    for size in (1e-1, 1e-3):
        z = (size * draw(1, 32, 4)).requires_grad_()
        visreg_terms(z, unit(draw(8, 4, seed=1)))[0].backward()
        sizes.append(z.grad.norm().item())
    assert sizes[1] > 0.9 * sizes[0] > 0.05


def test_the_deviation_that_shape_divides_by_is_held_still():
    """Else shape, which does not see scale, would have no gradient along it."""
    z = draw(1, 16, 3).requires_grad_()
    visreg_terms(z, unit(draw(8, 3, seed=1)))[1].backward()
    assert (z * z.grad).sum().abs() > 0.02


def test_it_weighs_its_terms():
    loss, stats = small("visreg", regularisation=0.25, scale=2.0, shape=3.0, centre=5.0)(views_of(3))
    s = {name: value.item() for name, value in stats.items()}
    regular = 2 * s["scale"] + 3 * s["shape"] + 5 * s["centre"]
    assert loss.item() == pytest.approx(0.75 * s["invariance"] + 0.25 * regular, rel=1e-5)


@pytest.mark.parametrize("images, deviation", [(8, 0.755), (64, 0.944), (256, 0.981)])
def test_few_quantiles_spread_less_than_a_normal_distribution(images: int, deviation: float):
    """So shape shrinks the features of a small batch; the module says from which batch on it does little."""
    normal = statistics.NormalDist()
    quantiles = [normal.inv_cdf(i / (images + 1)) for i in range(1, images + 1)]
    found = statistics.pstdev(quantiles)
    assert found == pytest.approx(deviation, abs=5e-4)
    z = torch.tensor(quantiles, dtype=torch.float64)[None, :, None]
    assert near(visreg_terms(z, torch.ones(1, 1, dtype=torch.float64))[1], (1 - found) ** 2)
