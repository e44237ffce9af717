"""k-nearest-neighbour classification by cosine similarity.

Shapes: N training and M test images, D embedding, K classes, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crlf.errors import InputError
from crlf.metrics.cosine import best, chunk_rows, top_k, unit

HEADLINE = 10  # the k of knn_accuracy
KS = (1, HEADLINE, 20, 200)  # all values of k
TEMPERATURE = 0.1  # of the weighted vote


class Neighbours(NamedTuple):
    """The nearest training images of each test image, nearest first."""

    labels: Tensor  # int64 (M, k), indices into `classes`
    cosines: Tensor  # float32 (M, k)
    classes: np.ndarray  # (K,)


def nearest(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int) -> Neighbours:
    """The k training images with the largest cosine similarity to each test image.

    Raises:
        InputError: k is not in 1..N.
    """
    if not 1 <= k <= len(train_emb):
        raise InputError(f"k must be in 1..{len(train_emb)}, the number of training images, not {k}")
    classes, target = np.unique(train_lbl, return_inverse=True)
    labels = torch.from_numpy(target.astype(np.int64))
    found = top_k(unit(test_emb), [unit(train_emb)], k)
    return Neighbours(labels[found.rows], found.cosines, classes)


def nearest_others(emb: np.ndarray, lbl: np.ndarray, groups: np.ndarray, k: int) -> Neighbours:
    """The k images with the largest cosine similarity to each image, leaving out images of its own group.

    Args:
        emb: float32 (N, D).
        lbl: int (N,).
        groups: int (N,), the same for images that must not vote for each other.
        k: the number of neighbours; fewer if the largest group leaves fewer other images.

    Raises:
        InputError: all images are in one group.
    """
    classes, target = np.unique(lbl, return_inverse=True)
    labels, own = torch.from_numpy(target.astype(np.int64)), torch.from_numpy(groups)
    k = min(k, len(emb) - int(np.bincount(groups).max()))
    if k < 1:
        raise InputError(f"kNN needs at least two different images, but all {len(emb)} are copies of one")
    rows = unit(emb)
    found = []
    for part in torch.arange(len(emb)).split(chunk_rows(len(emb))):
        cosines = rows[part] @ rows.T
        found.append(best(cosines.masked_fill_(own[part][:, None] == own, -torch.inf), k))
    return Neighbours(
        labels[torch.cat([one.rows for one in found])], torch.cat([one.cosines for one in found]), classes
    )


def knn_predict(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int = 10) -> np.ndarray:
    """Predict by majority vote of the k training images with the largest cosine similarity.

    A tie goes to the class with the nearest neighbour; in scikit-learn it goes to the smallest label.

    Args:
        train_emb, test_emb: float32 (N, D) and (M, D).
        train_lbl: int (N,).
        k: at most N.

    Returns:
        int64 (M,).
    """
    neighbours, _, classes = nearest(train_emb, train_lbl, test_emb, k)
    return classes[vote(neighbours, len(classes)).numpy()].astype(np.int64)


def vote(neighbours: Tensor, classes: int) -> Tensor:
    """The winning class of each row of neighbours, int64 (M, k), nearest first -> int64 (M,)."""
    k = neighbours.shape[1]
    votes = count(neighbours, classes)
    ranks = torch.arange(k).expand_as(neighbours)
    first = torch.full_like(votes, k).scatter_reduce(1, neighbours, ranks, "amin")  # of each class
    return ((k + 1) * votes - first).argmax(dim=1)


def count(neighbours: Tensor, classes: int) -> Tensor:
    """Votes for each class, int64 (M, k) -> int64 (M, K), without a one-hot (M, k, K): 800 MB for 1,000 classes."""
    votes = torch.zeros(len(neighbours), classes, dtype=torch.int64)
    return votes.scatter_add_(1, neighbours, torch.ones_like(neighbours))


def tied(neighbours: Tensor, classes: int) -> float:
    """The share of rows in which two or more classes tie for the most votes."""
    votes = count(neighbours, classes).topk(2, dim=1).values  # (M, 2)
    return (votes[:, 0] == votes[:, 1]).double().mean().item()


def weighted_vote(neighbours: Tensor, cosines: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """The class with the largest sum of exp(cosine / τ): int64 and float (M, k) -> int64 (M,).

    Wu, Xiong, Yu and Lin 2018, Unsupervised feature learning via non-parametric instance discrimination, section 3.4.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp()  # the nearest has weight 1, so nothing overflows
    return torch.zeros(len(neighbours), classes).scatter_add_(1, neighbours, weights).argmax(dim=1)
