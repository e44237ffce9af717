"""k nearest neighbours by cosine: who they are, and what they vote for. Nothing is fitted.

Shapes: N images that vote and M that are asked about, D embedding, K classes, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crlf.errors import InputError
from crlf.metrics.cosine import best, chunk_rows, top_k, unit

HEADLINE = 10  # the k of knn_accuracy
KS = (1, HEADLINE, 20, 200)  # that are tried
TEMPERATURE = 0.1  # of the weighted vote


class Neighbours(NamedTuple):
    """The nearest training images of each test image, nearest first."""

    labels: Tensor  # int64 (M, k), places in `classes`
    cosines: Tensor  # float32 (M, k)
    classes: np.ndarray  # (K,)


def nearest(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int) -> Neighbours:
    """The k training images of the highest cosine similarity."""
    if not 1 <= k <= len(train_emb):
        raise InputError(f"k must be in 1..{len(train_emb)}, the number of training images, not {k}")
    classes, target = np.unique(train_lbl, return_inverse=True)
    labels = torch.from_numpy(target.astype(np.int64))
    found = top_k(unit(test_emb), [unit(train_emb)], k)
    return Neighbours(labels[found.rows], found.cosines, classes)


def nearest_others(emb: np.ndarray, lbl: np.ndarray, groups: np.ndarray, k: int) -> Neighbours:
    """The k other images of the highest cosine similarity to each image; images of its own group are left out.

    Args:
        emb: float32 (N, D).
        lbl: int (N,).
        groups: int (N,), the same for images that must not vote for each other.
        k: at most; where a group leaves fewer, as many as the largest one leaves all others.

    Raises:
        InputError: all images are of one group.
    """
    classes, target = np.unique(lbl, return_inverse=True)
    labels, own = torch.from_numpy(target.astype(np.int64)), torch.from_numpy(groups)
    k = min(k, len(emb) - int(np.bincount(groups).max()))
    if k < 1:
        raise InputError(f"kNN needs two different images or more, and all {len(emb)} are copies of one")
    rows = unit(emb)
    found = []
    for part in torch.arange(len(emb)).split(chunk_rows(len(emb))):
        cosines = rows[part] @ rows.T
        found.append(best(cosines.masked_fill_(own[part][:, None] == own, -torch.inf), k))
    return Neighbours(
        labels[torch.cat([one.rows for one in found])], torch.cat([one.cosines for one in found]), classes
    )


def knn_predict(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int = 10) -> np.ndarray:
    """Majority vote of the k training images of the highest cosine similarity.

    Among classes with equally many votes, the one whose nearest member is nearest wins; scikit-learn takes the
    smallest label there.

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
    first = torch.full_like(votes, k).scatter_reduce(1, neighbours, ranks, "amin")  # of each class's nearest member
    return ((k + 1) * votes - first).argmax(dim=1)


def count(neighbours: Tensor, classes: int) -> Tensor:
    """Votes for each class, int64 (M, k) -> int64 (M, K), without a one-hot (M, k, K): 800 MB for 1,000 classes."""
    votes = torch.zeros(len(neighbours), classes, dtype=torch.int64)
    return votes.scatter_add_(1, neighbours, torch.ones_like(neighbours))


def tied(neighbours: Tensor, classes: int) -> float:
    """The share of rows in which two classes have the most votes."""
    votes = count(neighbours, classes).topk(2, dim=1).values  # (M, 2)
    return (votes[:, 0] == votes[:, 1]).double().mean().item()


def weighted_vote(neighbours: Tensor, cosines: Tensor, classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """The class of the largest sum of exp(cosine / τ): int64 and float (M, k) -> int64 (M,).

    Wu, Xiong, Yu and Lin 2018, Unsupervised feature learning via non-parametric instance discrimination, section 3.4.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp()  # of the nearest 1: nothing overflows
    return torch.zeros(len(neighbours), classes).scatter_add_(1, neighbours, weights).argmax(dim=1)
