"""How a set of a few hundred photographs is measured: each of them is tested, by probes that never saw its label.

It is what `crlf probe` does with few images (crlf.evaluation.cross_validation), image by image, for each seed. The
embeddings come from an encoder that saw all images without labels, or none. Shapes: N images, D embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crlf.evaluation.cross_validation import fit, folds_of, same
from crlf.evaluation.few_labels import draw
from crlf.evaluation.logistic_regression import linear
from crlf.metrics.knn import HEADLINE, nearest_others, vote
from crlf.runtime.devices import one_thread

EACH = 5  # labels a class
DRAWS = 9  # of these labels; a digit an image holds how often it was right


class Correct(NamedTuple):
    """For each image how often it was told right: float64 (N,), in 0..1; not a number where it was never tested."""

    linear: np.ndarray
    knn: np.ndarray
    few: np.ndarray


def measure(emb: np.ndarray, labels: np.ndarray, seed: int) -> Correct:
    """The three probes.

    Args:
        emb: float32 (N, D).
        labels: int64 (N,), 0 to K - 1; each more than `EACH` times.
        seed: of the folds and of the labels that are drawn.
    """
    with one_thread():  # the products are small
        return Correct(cross_validated(emb, labels, seed), leave_one_out(emb, labels), few_labels(emb, labels, seed))


def cross_validated(emb: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The linear probe on five folds, each with its own C, which is chosen within the other four."""
    probe, _ = fit(emb, labels, folds_of(labels, same(emb), seed))
    return (probe.predict(emb) == labels).astype(np.float64)


def leave_one_out(emb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """kNN among all other images but copies, cosine, majority of `neighbours`."""
    found = nearest_others(emb, labels, same(emb), neighbours(labels))
    return (found.classes[vote(found.labels, len(found.classes)).numpy()] == labels).astype(np.float64)


def neighbours(labels: np.ndarray) -> int:
    """k: ten, or all others of the smallest class, so that every class can have all of the votes."""
    return min(HEADLINE, int(np.bincount(labels).min()) - 1)


def few_labels(emb: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The linear probe with five labels a class, tested on all other images; the mean over draws."""
    right, tested = np.zeros(len(labels)), np.zeros(len(labels))
    for number in range(DRAWS):
        train = draw(labels, EACH, DRAWS * seed + number)
        test = np.setdiff1d(np.arange(len(labels)), train)
        right[test] += linear(emb[train], labels[train], emb[test]).predictions == labels[test]
        tested[test] += 1
    return np.divide(right, tested, out=np.full(len(labels), np.nan), where=tested > 0)
