"""Every image tested by what was fitted on others: nothing that is tested was seen, neither itself nor a copy of it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from crlf.evaluation import baselines
from crlf.evaluation.cross_validation import FOLDS, folds_of, same
from crlf.evaluation.embedded import Embedded
from crlf.evaluation.few_labels import few_label
from crlf.evaluation.knn import knn
from crlf.evaluation.linear import linear
from crlf.evaluation.logistic_regression import choose_c
from crlf.evaluation.retrieval import retrieval
from crlf.metrics.intervals import paired_interval

CLASSES = 4


def every_image(x: np.ndarray, y: np.ndarray) -> Embedded:
    return Embedded(x, y, x, y, folds=folds_of(y, same(x)))


def noise(n: int = 240, width: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell nothing, and more of them than images: what was fitted is told without a mistake."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, width)).astype(np.float32), np.arange(n) % CLASSES


def clusters(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    random, y = np.random.default_rng(1), np.arange(n) % CLASSES
    centres = np.random.default_rng(2).normal(size=(CLASSES, 8))
    return (centres[y] + 0.9 * random.normal(size=(n, 8))).astype(np.float32), y


def test_folds_have_as_many_of_each_class_and_hold_copies_together():
    y = np.repeat([0, 1, 2], [50, 23, 3])
    groups = np.arange(len(y))
    groups[[4, 9, 60]] = 4  # copies, one of them in another class
    folds = folds_of(y, groups)
    assert folds[4] == folds[9] == folds[60] and set(folds) == set(range(FOLDS))
    for label in range(3):
        counts = np.bincount(folds[y == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 3
    assert (folds_of(y, groups) == folds).all() and (folds_of(y, groups, seed=1) != folds).any()


def test_the_linear_probe_of_a_fold_is_fitted_on_the_others():
    x, y = clusters()
    embedded = every_image(x, y)
    model, _ = embedded.linear
    assert embedded.folds is not None
    for fold in range(FOLDS):
        rest, here = embedded.folds != fold, embedded.folds == fold
        mean, scale = x[rest].mean(axis=0), x[rest].var(axis=0).mean() ** 0.5  # few images have one scale
        theirs = LogisticRegression(C=choose_c(x[rest], y[rest]).c, max_iter=1000).fit(
            (x[rest] - mean) / scale, y[rest]
        )
        np.testing.assert_array_equal(embedded.predicted[here], theirs.predict((x[here] - mean) / scale))
    np.testing.assert_allclose(model.probabilities(x).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("probe, score", [(linear, "linear_accuracy"), (knn, "knn_accuracy")])
def test_noise_gives_chance(probe, score: str, copied: bool):
    x, y = noise()
    if copied:  # of each image three, of the same class: whoever has seen one knows the others
        x, y = np.tile(x[:80], (3, 1)), np.tile(y[:80], 3)
    found = probe(every_image(x, y))
    assert abs(found.scores[score] - 1 / CLASSES) < 0.12, "chance is 0.25"
    assert "cross-validated" in found.protocol or "leave one out" in found.protocol


def test_neighbours_are_scikit_learns_without_the_image_itself():
    x, y = clusters()
    embedded = every_image(x, y)
    theirs = KNeighborsClassifier(11, metric="cosine", algorithm="brute").fit(x, y).kneighbors(x)[1][:, 1:]
    np.testing.assert_array_equal(embedded.neighbours.labels[:, :10].numpy(), y[theirs])


def test_an_image_does_not_find_its_copy():
    x, y = noise(40)
    doubled, labels = np.concatenate([x, x]), np.concatenate([y, y])
    assert abs(retrieval(every_image(doubled, labels)).scores["retrieval_map"] - 0.27) < 0.06
    one_of_each = np.repeat(np.arange(20), 2)  # the only other one of a class is the copy
    pairs = np.repeat(x[:20], 2, axis=0)
    assert retrieval(every_image(pairs, one_of_each)).scores["retrieval_map"] == 0


def test_few_labels_are_tested_on_the_others():
    x, y = noise(80)
    table = few_label(every_image(x, y)).scores["few_label"]
    assert set(table) == {"1 a class", "5 a class", "10 a class", "10 %"}
    assert all(abs(row["mean"] - 0.25) < 0.1 for row in table.values())


def test_a_split_of_them_has_no_image_twice():
    x, y = clusters()
    embedded = every_image(x, y)
    embedded.__dict__["images"] = (baselines.torch.arange(len(x)),) * 2
    one = embedded.split()
    assert one.folds is None and len(one.train) + len(one.test) == len(x)
    assert set(one.images[0].tolist()).isdisjoint(one.images[1].tolist())
    np.testing.assert_array_equal(x[one.images[1].numpy()], one.test)


def test_the_gain_over_a_baseline_is_paired():
    (x, y), (other, _) = clusters(), noise()
    embedded = every_image(x, y)
    found = baselines.both("untrained", embedded, other, other)
    apart = found["linear_over_untrained"]
    blank = every_image(other, y)
    blank = Embedded(other, y, other, y, folds=embedded.folds)
    assert apart["difference"] == embedded.accuracy(embedded.predicted) - found["untrained_linear_accuracy"]
    assert found["untrained_linear_accuracy"] == blank.accuracy(blank.predicted)
    right = [blank.predicted == y, embedded.predicted == y]
    assert apart["interval"] == paired_interval(*right) and apart["interval"][0] > 0.3
    assert found["knn_over_untrained"]["difference"] > 0.3


@pytest.mark.parametrize("probe", [linear, knn, few_label, retrieval])
@pytest.mark.parametrize("kind", ["all images are one to the encoder", "a class is", "two and one of a class"])
def test_odd_embeddings_are_measured(probe, kind: str):
    x, y = noise(40, width=8)
    y = y % 2
    if kind == "all images are one to the encoder":
        x[:] = 1
    elif kind == "a class is":
        x[y == 0] = x[0]
    else:
        y = np.concatenate([np.zeros(20, int), np.ones(17, int), [2, 2, 3]])
    found = probe(every_image(x, y)).scores
    assert all(0 <= value <= 1 for key, value in found.items() if key.endswith(("accuracy", "map")))
    assert found


def test_the_folds_are_the_same_for_every_encoder():
    """What has no copies stands in the same fold, whatever its embedding; so that runs are compared on one split."""
    labels, random = np.arange(40) % 4, np.random.default_rng(0)
    one, other = (random.normal(size=(40, 3)).astype(np.float32) for _ in range(2))
    assert np.array_equal(folds_of(labels, same(one)), folds_of(labels, same(other)))
    one[30] = one[2]
    assert same(one)[30] == 2 == same(one)[2] and len(np.unique(same(one))) == 39
