"""Each measure of features against a closed form or a naive loop; a collapse is named, what is sound is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import i0
from tiny_run import numbers
from torch import Tensor

from crlf.metrics import geometry


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(D: int) -> Tensor:
    return torch.linalg.qr(drawn(D, D, seed=9))[0]


def circle(N: int) -> Tensor:
    angle = 2 * math.pi * torch.arange(N).double() / N
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# Ranks and spectra


def with_values(values: list[float], N: int = 30) -> Tensor:
    """A matrix (N, D) of these singular values."""
    D = len(values)
    return (torch.linalg.qr(drawn(N, D).double())[0] * torch.tensor(values).double()) @ rotation(D).double()


@pytest.mark.parametrize("shape", [(30, 4), (4, 30), (7, 7)])
def test_singular_values_are_numpys(shape: tuple[int, int]):
    h = drawn(*shape)
    values = geometry.singular_values(h)
    assert values.dtype == torch.float64 and values.device.type == "cpu"
    np.testing.assert_allclose(values, np.linalg.svd(h.double().numpy(), compute_uv=False), rtol=1e-9)


def test_known_singular_values():
    found = geometry.singular_values(with_values([5, 3, 0.5, 0]))
    torch.testing.assert_close(found, torch.tensor([5, 3, 0.5, 0]).double(), atol=1e-6, rtol=0)


def test_what_is_not_finite_has_no_rank_and_is_no_collapse():
    h = drawn(6, 4)
    h[2, 1] = torch.nan
    assert geometry.singular_values(h).isnan().all() and math.isnan(geometry.rankme(h)) and math.isnan(geometry.dead(h))
    values = geometry.singular_values(geometry.centred(h))
    assert geometry.diagnose({f"h_{key}": value for key, value in geometry.describe(h, h, values).items()}) is None


@pytest.mark.parametrize("D", [1, 3, 8])
def test_orthogonal_features_have_full_rank(D: int):
    h = 7 * torch.linalg.qr(drawn(20, D))[0]
    assert geometry.rankme(h) == pytest.approx(D, rel=1e-4)
    assert geometry.participation_ratio(geometry.singular_values(h)) == pytest.approx(D, rel=1e-4)


def test_one_direction_has_rank_1():
    h = drawn(20, 1) @ drawn(1, 8, seed=1)
    values = geometry.singular_values(h)
    assert geometry.rankme(h) == pytest.approx(1, abs=1e-4)
    assert geometry.effective_rank(values) == pytest.approx(1, abs=1e-4)
    assert geometry.participation_ratio(values) == pytest.approx(1, abs=1e-9)


def test_rank_of_known_singular_values():
    """Two of 3 and one of 1: shares 3/7, 3/7 and 1/7, and 19² / (81 + 81 + 1) by squares."""
    values = torch.tensor([3.0, 3.0, 1.0]).double()
    entropy = -(2 * 3 / 7 * math.log(3 / 7) + 1 / 7 * math.log(1 / 7))
    assert geometry.effective_rank(values) == pytest.approx(math.exp(entropy))
    assert geometry.rankme(with_values([3, 3, 1])) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert geometry.participation_ratio(values) == pytest.approx(19**2 / 163)


def test_rankme_is_the_papers_formula():
    h = drawn(40, 12) * torch.arange(1, 13)
    sigma = np.linalg.svd(h.double().numpy(), compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    assert geometry.rankme(h) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


def test_zeros_have_rank_1():
    assert geometry.effective_rank(torch.zeros(4)) == geometry.participation_ratio(torch.zeros(4)) == 1


def test_ranks_stay_when_features_are_turned_or_scaled():
    h = drawn(40, 6) * torch.tensor([9.0, 4, 2, 1, 1, 0.1])
    for other in (h @ rotation(6), 1000 * h, h.flip(0)):
        assert geometry.rankme(other) == pytest.approx(geometry.rankme(h), rel=1e-4)
        ratios = [geometry.participation_ratio(geometry.singular_values(x)) for x in (other, h)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


def test_a_shift_changes_no_rank_of_centred_features():
    h = drawn(40, 6)
    ranks = [geometry.effective_rank(geometry.singular_values(geometry.centred(x))) for x in (h, h + 50)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-4) and geometry.rankme(h + 50) < 2


def test_the_spectrum_is_of_ranks_1_2_4():
    assert geometry.spectrum(torch.tensor([8.0, 4, 3, 2, 1, 1])) == pytest.approx([1, 0.5, 0.25])
    assert geometry.spectrum(torch.tensor([8.0])) == [1] and geometry.spectrum(torch.zeros(2)) == [0, 0]


# On the sphere


def naive(a: Tensor, b: Tensor) -> dict[str, float]:
    """In loops over pairs, from the papers' formulas."""
    u, v = ((x / x.norm(dim=1, keepdim=True)).double() for x in (a, b))
    N = len(u)
    others = [(i, j) for i in range(N) for j in range(N) if i != j]

    def distance(x: Tensor, y: Tensor) -> float:
        return float((x - y).square().sum())

    same = sum(distance(u[i], v[i]) for i in range(N)) / N
    return {
        "alignment": same,
        "uniformity": math.log(sum(math.exp(-2 * distance(u[i], u[j])) for i, j in others) / len(others)),
        "agreement": 1 - same / (sum(distance(u[i], v[j]) for i, j in others) / len(others)),
        "positive_cosine": sum(float(u[i] @ v[i]) for i in range(N)) / N,
        "negative_cosine": sum(float(u[i] @ v[j]) for i, j in others) / len(others),
    }


def described(a: Tensor, b: Tensor) -> dict[str, float]:
    return geometry.describe(a, b, geometry.singular_values(geometry.centred(a)))


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_measures_on_the_sphere_are_a_naive_loops(noise: float):
    a = drawn(9, 5) + 1
    b = a + noise * drawn(9, 5, seed=1)
    found = described(a, b)
    for key, value in naive(a, b).items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def test_they_stay_when_features_are_turned_or_scaled():
    a, b = drawn(9, 5), drawn(9, 5, seed=1)
    before, after = described(a, b), described(30 * a @ rotation(5), 20 * b @ rotation(5))
    for key in naive(a, b):
        assert after[key] == pytest.approx(before[key], abs=1e-5), key


def test_a_uniform_circle():
    """The mean of exp(-2 (2 - 2 cos)) over a circle is exp(-4) I0(4); the pairs of a point with itself are left out."""
    N = 100
    expected = math.log((N * math.exp(-4) * i0(4) - 1) / (N - 1))
    assert geometry.uniformity(circle(N).float()) == pytest.approx(expected, abs=1e-5)
    assert geometry.dead(circle(N)) == 0 and geometry.rankme(circle(N)) == pytest.approx(2, abs=1e-4)


def test_many_dimensions_come_near_the_lowest_uniformity():
    assert geometry.uniformity(drawn(200, 2000)) == pytest.approx(-4, abs=0.02)
    assert geometry.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_opposite_views_are_as_far_apart_as_can_be():
    a = drawn(6, 3)
    assert geometry.alignment(a, -a) == pytest.approx(4)
    assert geometry.similarities(a, -a)[0].tolist() == pytest.approx([-1] * 6)


@pytest.mark.parametrize("row", [torch.ones(4), torch.tensor([0.1, -3, 7, 1e-9]), torch.zeros(4)])
def test_identical_features(row: Tensor):
    h = row.repeat(10, 1)
    found = described(h, h)
    assert found["alignment"] == found["agreement"] == 0 and found["dead"] == 1
    assert found["spread"] < 1e-6
    if row.any():
        assert found["uniformity"] == pytest.approx(0, abs=1e-5) and found["positive_cosine"] == pytest.approx(1)


def test_agreement_estimates_the_share_of_the_variance_that_tells_images():
    """Nearly constant rows: an image's own part has a variance of 4, each view's noise of 1."""
    mean, own, noise = 1000 + torch.zeros(2000, 50), 2 * drawn(2000, 50, seed=1), drawn(2, 2000, 50, seed=2)
    assert geometry.agreement(mean + own + noise[0], mean + own + noise[1]) == pytest.approx(0.8, abs=0.01)
    assert geometry.agreement(own, own) == pytest.approx(1) and abs(geometry.agreement(*noise)) < 0.01


def test_dead_features_are_counted_whatever_the_scale():
    h = drawn(50, 8)
    h[:, 2] = 5.0
    h[:, 5] = 1e-5 * h[:, 5]
    for other in (h, 1e4 * h, 1e-4 * h):
        assert geometry.dead(other) == 0.25


def test_a_feature_is_dead_below_a_thousandth():
    """Of the root mean square of all: here 1, but for a hundredth."""
    h = drawn(400, 100)
    h = (h - h.mean(dim=0)) / h.std(dim=0)
    for share, expected in ((1.2e-3, 0.0), (0.8e-3, 0.01)):
        h[:, 0] = share * (h[:, 0] - h[:, 0].mean()) / h[:, 0].std()
        assert geometry.dead(h) == pytest.approx(expected)


def test_histograms_count_every_pair():
    cosines = torch.tensor([-1.0, -0.95, 0.05, 0.96, 1.0, 1.0000001])
    counts = geometry.histogram(cosines)
    assert sum(counts) == 6 and (counts[0], counts[10], counts[19]) == (2, 1, 3)
    positive, negative = geometry.similarities(drawn(7, 3), drawn(7, 3, seed=1))
    assert positive.shape == (7,) and negative.shape == (42,)


# Collapse


@pytest.mark.parametrize(
    "found, what, measure, value, threshold",
    [
        (numbers(z={"spread": 0.05, "agreement": 0.1}), "nearly the same projection", "spread of z", 0.05, 0.1),
        (numbers(h={"spread": 0.01, "agreement": 0.1}), "nearly the same embedding", "spread of h", 0.01, 0.02),
        (numbers(z={"effective_rank": 1.02}), "every projection", "effective rank of z", 1.02, 1.1),
        (numbers(h={"effective_rank": 1.4}), "every embedding", "effective rank of h", 1.4, 2.0),
        (numbers(h={"dead": 0.95}), "every embedding are dead", "share of dead features in h", 0.95, 0.9),
    ],
)
def test_a_collapse_has_its_number_its_threshold_and_advice(found, what: str, measure: str, value, threshold):
    collapse = geometry.diagnose(found)
    assert collapse and collapse[1:4] == (measure, value, threshold)
    assert collapse.what.endswith(what) and collapse.advice.startswith("a lower --lr")
    side = "above" if value > threshold else "below"
    line = f"collapse: {collapse.what} ({measure} {value:.3f}, {side} {threshold}); try {collapse.advice}"
    assert str(collapse) == line and "\n" not in line


@pytest.mark.parametrize(
    "below, above",
    [
        ({"z": {"spread": 0.095, "agreement": 0.1}}, {"z": {"spread": 0.105, "agreement": 0.1}}),
        ({"z": {"spread": 0.01, "agreement": 0.49}}, {"z": {"spread": 0.01, "agreement": 0.51}}),
        ({"h": {"spread": 0.019, "agreement": 0.1}}, {"h": {"spread": 0.021, "agreement": 0.1}}),
        ({"z": {"effective_rank": 1.09}}, {"z": {"effective_rank": 1.11}}),
        ({"h": {"effective_rank": 1.95}}, {"h": {"effective_rank": 2.05}}),
        ({"h": {"dead": 0.91}}, {"h": {"dead": 0.89}}),
    ],
)
def test_each_threshold_of_a_collapse_from_both_sides(below: dict, above: dict):
    assert geometry.diagnose(numbers(**below)) and not geometry.diagnose(numbers(**above))


def test_what_is_sound_is_not_accused():
    assert geometry.diagnose(numbers()) is None and geometry.diagnose(numbers(z={})) is None
    # nearly equal projections whose differences tell images: MoCo at its start, and it learns
    assert geometry.diagnose(numbers(z={"spread": 0.02, "agreement": 0.8})) is None


# LiDAR


def test_lidar_is_the_papers_formula():
    """By matrices, with the root of the covariance from scipy."""
    from scipy.linalg import sqrtm

    views = drawn(12, 5, 6, seed=3) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 4 * drawn(12, 1, 6, seed=4)
    h = (views.double() / views.double().std()).numpy()
    means = h.mean(axis=1)
    apart = means - means.mean(axis=0)
    inner = sum(np.outer(v, v) for i in range(12) for v in h[i] - means[i]) / (12 * 4) + 1e-4 * np.eye(6)
    root = np.linalg.inv(sqrtm(inner).real)
    values = np.linalg.eigvalsh(root @ (apart.T @ apart) @ root)
    p = values / values.sum()
    assert geometry.lidar(views) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_lidar_counts_directions_in_which_images_differ():
    """Three of them, whatever views do in the other ones."""
    centres = torch.zeros(30, 8)
    centres[:, :3] = torch.linalg.qr(geometry.centred(drawn(30, 3)))[0] * 10
    views = centres[:, None] + torch.cat([0.01 * drawn(30, 400, 3, seed=1), drawn(30, 400, 5, seed=2)], dim=2)
    assert geometry.lidar(views) == pytest.approx(3, abs=0.05)
    assert geometry.lidar(views * 1000) == pytest.approx(geometry.lidar(views), rel=1e-9)
