"""Every measure of the probes against scikit-learn, torchmetrics, a naive loop or a closed form."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score
from test_probes import TEST, TRAIN, embedded

from crlf.evaluation.calibration import calibration_error
from crlf.evaluation.clustering import cluster_accuracy
from crlf.evaluation.corruptions import CORRUPTIONS
from crlf.evaluation.embedded import Embedded
from crlf.evaluation.few_labels import draw, few_label, over_draws
from crlf.evaluation.logistic_regression import linear
from crlf.evaluation.probe import PROBES
from crlf.evaluation.retrieval import average_precision
from crlf.metrics.intervals import interval, paired_interval
from crlf.metrics.knn import nearest, weighted_vote


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


# Intervals


@pytest.mark.parametrize("right, n", [(400, 500), (20, 40), (30, 30), (0, 30)])
def test_the_interval_is_wilsons(right: int, n: int):
    p, z = right / n, 1.959964  # written out
    middle, width = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n))
    np.testing.assert_allclose(interval(np.arange(n) < right), expected, atol=1e-7)


@pytest.mark.parametrize("n", [12, 100, 1000])
@pytest.mark.parametrize("truth", [0.5, 0.9, 0.98])
def test_the_interval_holds_the_truth_in_95_of_100_samples(n: int, truth: float):
    """Summed over all samples; the bootstrap's percentiles hold it in 21 of 100 for 12 images and 0.98."""
    weights = stats.binom.pmf(np.arange(n + 1), n, truth)
    held = [weights[k] for k in np.flatnonzero(weights > 1e-9) if within(truth, interval(np.arange(n) < k))]
    assert 0.93 < sum(held) < 0.98


def within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def test_the_paired_interval_is_the_bootstraps_and_knows_the_pairs():
    a = drawn(800) < 0.7
    b = np.where(drawn(800, seed=1) < 0.06, ~a, a)  # nearly always alike
    rows = np.random.default_rng(0).integers(800, size=(20_000, 800))
    naive = np.quantile((b[rows].astype(float) - a[rows]).mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(paired_interval(a, b), naive, atol=1.01 / 800)  # a step of it
    unpaired = 1.96 * np.sqrt(a.var() / 800 + b.var() / 800)
    low, high = paired_interval(a, b)
    assert (high - low) / 2 < 0.6 * unpaired
    assert paired_interval(a, a) == (0, 0)


# kNN


def test_weighted_votes_are_a_naive_loops():
    x, y = TRAIN
    found = nearest(x, y, TEST[0][:80], 20)
    for i, query in enumerate(TEST[0][:80].astype(np.float64)):
        cosines = x.astype(np.float64) @ query / np.linalg.norm(x.astype(np.float64), axis=1) / np.linalg.norm(query)
        votes = np.zeros(5)
        for row in np.argsort(cosines)[::-1][:20]:
            votes[y[row]] += np.exp(cosines[row] / 0.1)
        assert weighted_vote(found.labels[[i]], found.cosines[[i]], 5).item() == votes.argmax()


def test_knn_tells_every_k_and_k_1_has_no_weights():
    scores = PROBES["knn"](embedded()).scores
    for votes in scores["knn"].values():
        assert list(votes) == ["1", "10", "20", "200"]
    assert scores["knn"]["majority"]["1"] == scores["knn"]["weighted"]["1"]
    assert scores["knn"]["majority"]["10"] == scores["knn_accuracy"]
    assert list(PROBES["knn"](embedded(count=15)).scores["knn"]["majority"]) == ["1", "10", "15"]


# Retrieval


def test_average_precision_is_scikit_learns():
    cosines = drawn(30, 50)
    relevant = drawn(30, 50, seed=1) < 0.2
    order = (-cosines).argsort(axis=1)
    ours = average_precision(torch.from_numpy(np.take_along_axis(relevant, order, axis=1)))
    theirs = [average_precision_score(r, c) for r, c in zip(relevant, cosines, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_average_precision_by_hand():
    """Hits at places 1 and 4: (1/1 + 2/4) / 2; none at all: 0."""
    ranked = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert average_precision(ranked).tolist() == [0.75, 0]


def test_retrieval_ranks_training_images():
    x, y = TRAIN
    rows = np.random.default_rng(0).permutation(1000)
    norms = np.linalg.norm(x, axis=1)
    naive = [average_precision_score(y == TEST[1][i], x @ TEST[0][i] / norms) for i in rows]
    assert PROBES["retrieval"](embedded()).scores["retrieval_map"] == pytest.approx(np.mean(naive), abs=1e-4)


# Clusters


def test_cluster_accuracy_is_the_best_of_all_matchings():
    labels, clusters = (np.random.default_rng(i).integers(4, size=60) for i in (0, 1))
    best = max((np.array(match)[clusters] == labels).mean() for match in itertools.permutations(range(4)))
    assert cluster_accuracy(labels, clusters) == pytest.approx(best)
    assert cluster_accuracy(labels, (labels + 1) % 4) == 1


def test_clusters_that_are_classes_are_found_and_noise_is_not():
    labels = np.arange(200) % 4
    apart = (np.eye(4)[labels] + 0.01 * drawn(200, 4)).astype(np.float32)
    scores = PROBES["clustering"](Embedded(apart, labels, apart, labels)).scores
    assert scores == {"cluster_nmi": pytest.approx(1), "cluster_ari": pytest.approx(1), "cluster_accuracy": 1}
    noise = drawn(200, 4).astype(np.float32)
    assert abs(PROBES["clustering"](Embedded(noise, labels, noise, labels)).scores["cluster_ari"]) < 0.1


def test_equal_embeddings_have_no_clusters():
    found = PROBES["clustering"](Embedded(TRAIN[0], TRAIN[1], np.ones((50, 24), np.float32), TEST[1][:50]))
    assert not found.scores and "not measured" in found.protocol


# Calibration


def test_calibration_error_is_torchmetrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import multiclass_calibration_error
    logits = torch.from_numpy(3 * np.random.default_rng(0).normal(size=(2000, 6)))
    probabilities = logits.softmax(dim=1).float()
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    confidence, predicted = (t.numpy() for t in probabilities.max(dim=1))
    ours = calibration_error(confidence, predicted == labels.numpy())

    def theirs(bins: int) -> float:
        return multiclass_calibration_error(probabilities, labels, num_classes=6, n_bins=bins, norm="l1").item()

    assert ours == pytest.approx(theirs(15), abs=1e-6)
    assert all(abs(ours - theirs(bins)) > 1e-3 for bins in (10, 14, 16, 20)), "the number of bins shows"


def test_calibration_error_by_hand():
    """Two images at 0.9, one right; two at 0.6, both right: (2 |0.5 - 0.9| + 2 |1 - 0.6|) / 4."""
    confidence, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True])
    assert calibration_error(confidence, right, bins=10) == pytest.approx(0.4)
    assert calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0
    assert calibration_error(np.ones(3), np.zeros(3, dtype=bool)) == 1


def test_a_model_that_knows_is_calibrated():
    scores = PROBES["calibration"](embedded()).scores
    assert scores["calibration_error"] < 0.06 and 0.6 < scores["confidence"] < 1


# Few labels


@pytest.mark.parametrize("amount, each", [(1, 1), (50, 50), (0.1, 20)])
def test_a_draw_takes_as_much_of_each_class(amount: float, each: int):
    labels = np.random.default_rng(0).permutation(np.arange(800) % 4)
    rows = draw(labels, amount, seed=3)
    assert np.bincount(labels[rows]).tolist() == [each] * 4 and len(set(rows)) == len(rows)
    assert set(rows) != set(draw(labels, amount, seed=4))


@pytest.mark.long
def test_more_labels_are_better_and_the_spread_is_over_draws():
    table = few_label(embedded()).scores["few_label"]
    assert list(table) == ["1 a class", "5 a class", "10 a class", "50 a class", "1 %", "10 %"]
    assert [row["labels"] for row in table.values()][:4] == [5, 25, 50, 250]
    means = [table[f"{n} a class"]["mean"] for n in (1, 5, 50)]
    assert 0.2 < means[0] < means[1] < means[2] and 0 < table["1 a class"]["sd"] < 0.2


def test_few_labels_are_all_that_a_draw_knows():
    """The penalty too is chosen among them: the numbers are those of a linear probe on nothing else."""
    x, y = TRAIN
    draws = [draw(y, 50, seed) for seed in range(5)]
    accuracies = [(linear(x[rows], y[rows], TEST[0]).predictions == TEST[1]).mean() for rows in draws]
    found = over_draws(embedded(), 50)
    expected = {"labels": 250, "mean": np.mean(accuracies), "sd": stats.tstd(accuracies)}
    assert found == pytest.approx(expected, abs=1e-12)


def test_few_label_leaves_out_what_the_classes_do_not_have():
    assert list(few_label(embedded(np.arange(20) % 2, 20)).scores["few_label"]) == [
        "1 a class",
        "5 a class",
        "10 a class",
        "10 %",
    ]


# Corruptions


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_corruptions_change_more_and_are_always_the_same(name: str):
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (3, 3, 32, 1)) // 2 + picture(3, 3, 32, 32) // 8
    change = [np.abs(CORRUPTIONS[name](smooth, s).astype(float) - smooth).mean() for s in (1, 2, 3, 4, 5)]
    assert all(a < b for a, b in itertools.pairwise(change)) and change[0] > 0
    assert (CORRUPTIONS[name](smooth, 3) == CORRUPTIONS[name](smooth, 3)).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_corruptions_take_any_channels(name: str, channels: int):
    images = picture(2, channels, 20, 28)
    corrupted = CORRUPTIONS[name](images, 5)
    assert corrupted.shape == images.shape and corrupted.dtype == np.uint8 and (corrupted != images).any()


def test_noise_has_the_deviation_of_its_strength():
    gray = np.full((20, 3, 32, 32), 128, dtype=np.uint8)
    for strength, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        difference = (CORRUPTIONS["noise"](gray, strength).astype(float) - 128) / 255
        assert difference.std() == pytest.approx(deviation, rel=0.02)


def test_contrast_is_the_formula_and_keeps_the_mean():
    image = picture(1, 3, 32, 32)
    x = image / 255
    for channel in range(3):
        mean = x[0, channel].mean()
        expected = ((x[0, channel] - mean) * 0.4 + mean) * 255
        assert np.abs(CORRUPTIONS["contrast"](image, 3)[0, channel] - expected).max() <= 1  # cut off


def test_blur_is_a_gaussian():
    image = np.zeros((1, 1, 33, 33), dtype=np.uint8)
    image[0, 0, 16, 16] = 255
    row = CORRUPTIONS["blur"](image, 5)[0, 0, 16].astype(float)
    weights = stats.norm.pdf(np.arange(-4, 5), scale=1.0)
    expected = 255 * weights * weights[4] / weights.sum() ** 2
    assert np.abs(row[12:21] - expected).max() <= 1


def test_jpeg_is_pillows_at_the_quality(tmp_path: Path):
    from PIL import Image

    image = picture(1, 3, 32, 32)
    Image.fromarray(image[0].transpose(1, 2, 0)).save(tmp_path / "x.jpg", quality=58)
    expected = np.asarray(Image.open(tmp_path / "x.jpg")).transpose(2, 0, 1)
    assert (CORRUPTIONS["jpeg"](image, 3)[0] == expected).all()
