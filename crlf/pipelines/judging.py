"""Scores embeddings image by image: with labels by three probes, without labels by measures that need none.

Shapes: N images of the training part, M of the test part, D embedding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from crlf.data import ImageSet
from crlf.evaluation.crops import crops_and_images, some
from crlf.evaluation.cross_validation import folds_of, same
from crlf.evaluation.embedded import Embedded
from crlf.evaluation.few_labels import draw
from crlf.evaluation.logistic_regression import linear
from crlf.metrics.cosine import top_k, unit
from crlf.metrics.geometry import agreement, rankme
from crlf.pipelines.contestants import Shown
from crlf.runtime.devices import one_thread

EACH = 5  # labels per class, if the class has more images
DRAWS = 5  # random draws of these labels
SMALL = 5000  # images; with fewer, one thread is faster than several
Z = 1.96  # standard deviations, 95 % of a normal distribution
PROBES = {"linear": "linear", "knn": "kNN", "few": "few labels"}


class Judged(NamedTuple):
    """The scores of a contestant."""

    right: dict[str, np.ndarray]
    """By measure, the share of tries in which each image was predicted correctly: float64 (M,), in 0..1; NaN for an
    image that was never tested."""
    measures: dict[str, float]
    """Measures that need no labels."""

    def mean(self, name: str) -> float:
        return float(np.nanmean(self.right[name]))

    @property
    def score(self) -> float:
        """The mean over the probes; without labels, how often a crop finds its image."""
        return sum(map(self.mean, self.right)) / len(self.right)


class Difference(NamedTuple):
    """The difference of two contestants on the same images, as a share, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def difference(right: np.ndarray, other: np.ndarray) -> Difference:
    """The mean difference of two float (M,) arrays, leaving out images that are NaN in either.

    The interval uses the normal distribution of a mean of M differences, since the values are shares of several tries.
    """
    apart = (right - other)[~np.isnan(right - other)]
    mean, half = float(apart.mean()), Z * float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else 1.0
    return Difference(mean, mean - half, mean + half)


def folds(train: ImageSet, test: ImageSet) -> np.ndarray | None:
    """The folds for cross-validation, the same for every contestant: int64 (N,). Copies are in the same fold."""
    if test is not train or train.labels is None:
        return None
    groups = same(train.decoded.flatten(1).numpy().astype(np.float32))
    return folds_of(train.labels.numpy(), groups)


def judge(shown: Shown, train: ImageSet, test: ImageSet, by: np.ndarray | None) -> Judged:
    """Score a contestant.

    Args:
        shown: its embeddings.
        train, test: the images with their labels, if there are any.
        by: the folds, see `folds`.
    """
    asked, rows = crops_and_images(shown.encoder, some(shown.images), shown.normalisation)
    nearest = top_k(unit(asked), [unit(rows)], 1).rows[:, 0].numpy()
    measures = {"rankme": rankme(rows), "agreement": agreement(asked, rows)}
    crops = (nearest == np.arange(len(rows))).astype(np.float64)
    if train.labels is None or test.labels is None or not len(test):
        return Judged({"crops": crops}, measures)
    measures["crops"] = float(crops.mean())
    embedded = Embedded(shown.train, train.labels.numpy(), shown.test, test.labels.numpy(), folds=by)
    with one_thread() if len(train) < SMALL else contextlib.nullcontext():
        right = {"linear": embedded.predicted == embedded.test_lbl, "knn": embedded.voted == embedded.test_lbl}
        shares: Mapping[str, np.ndarray] = {name: values.astype(np.float64) for name, values in right.items()}
        return Judged({**shares, "few": few(embedded)}, measures)


def few(embedded: Embedded) -> np.ndarray:
    """The linear probe with a few labels per class, tested on all other images: float64 (M,), the mean over draws."""
    smallest = int(np.unique(embedded.train_lbl, return_counts=True)[1].min())
    each = max(1, min(EACH, smallest - (embedded.folds is not None)))
    right, times = np.zeros(len(embedded.test)), np.zeros(len(embedded.test))
    for seed in range(DRAWS):
        rows = draw(embedded.train_lbl, each, seed)
        asked = np.ones(len(embedded.test), dtype=bool)
        if embedded.folds is not None:
            asked[rows] = False
        found = linear(embedded.train[rows], embedded.train_lbl[rows], embedded.test[asked]).predictions
        right[asked] += found == embedded.test_lbl[asked]
        times[asked] += 1
    return np.divide(right, times, out=np.full(len(right), np.nan), where=times > 0)
