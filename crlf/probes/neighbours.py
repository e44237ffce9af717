"""Probes without a fit: nearest neighbours by cosine, and retrieval.

Shapes: N training and M test images, D embedding, K classes, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crlf.errors import InputError
from crlf.intervals import interval
from crlf.probes.inputs import Embedded, Found

KS = (1, 10, 20, 200)
HEADLINE = 10  # the k of knn_accuracy
TEMPERATURE = 0.1  # of the weighted vote
QUERIES = 1000  # test images that retrieval asks for
CHUNK_BYTES = 2**28  # what the similarities of one chunk of test images may take


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
    train = F.normalize(torch.from_numpy(train_emb), dim=1)
    test = F.normalize(torch.from_numpy(test_emb), dim=1)
    found = [(chunk @ train.T).topk(k, dim=1) for chunk in test.split(chunk_rows(len(train)))]
    places, cosines = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    return Neighbours(labels[places], cosines, classes)


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


def chunk_rows(train: int) -> int:
    """Test images in a chunk, so that its similarities to the training images fit in CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * train))


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


def knn(images: Embedded) -> Found:
    """kNN with each k of `KS` that the training images allow, by majority and weighted."""
    ks = sorted({min(k, len(images.train)) for k in KS})
    found = nearest(images.train, images.train_lbl, images.test, ks[-1])
    K, headline = len(found.classes), min(HEADLINE, len(images.train))
    majority, weighted = {}, {}
    for k in ks:
        rows = found.labels[:, :k]
        majority[k] = found.classes[vote(rows, K).numpy()].astype(np.int64)
        weighted[k] = found.classes[weighted_vote(rows, found.cosines[:, :k], K).numpy()].astype(np.int64)
    ties = f"ties, {100 * tied(found.labels[:, :headline], K):.1f} % of the test images, go to the nearest"
    protocol = f"majority of the k = {headline} nearest of {len(images.train):,} training images by cosine; {ties}"
    protocol += f"; weighted: votes of exp(cosine / {TEMPERATURE})"
    table = {
        name: {str(k): images.accuracy(predictions) for k, predictions in votes.items()}
        for name, votes in (("majority", majority), ("weighted", weighted))
    }
    low_high = interval(majority[headline] == images.test_lbl)
    return Found({"knn_accuracy": table["majority"][str(headline)], "knn_interval": low_high, "knn": table}, protocol)


# Retrieval


def average_precision(relevant: Tensor) -> Tensor:
    """Of each row the mean of the precisions at its relevant places: bool (M, N), best match first -> float64 (M,).

    Manning, Raghavan and Schütze 2008, Introduction to information retrieval, equation 8.8. 0 where none is relevant.
    """
    hits = relevant.cumsum(dim=1).double()
    precision = hits / torch.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(dim=1) / hits[:, -1].clamp(min=1)


def retrieval(images: Embedded) -> Found:
    """Mean average precision: test images ask for the training images of their class, ranked by cosine."""
    rows = np.random.default_rng(0).permutation(len(images.test))[:QUERIES]
    train = F.normalize(torch.from_numpy(images.train), dim=1)
    labels, asked = torch.from_numpy(images.train_lbl), torch.from_numpy(images.test_lbl[rows])
    queries = F.normalize(torch.from_numpy(images.test[rows]), dim=1)
    size = max(1, chunk_rows(len(train)) // 8)  # ranks are of int64, and hits of float64
    precisions = [
        average_precision(labels[(query @ train.T).argsort(dim=1, descending=True)] == wanted[:, None])
        for query, wanted in zip(queries.split(size), asked.split(size), strict=True)
    ]
    protocol = f"mean average precision over {len(rows):,} test images as queries, all {len(train):,} training images"
    return Found({"retrieval_map": torch.cat(precisions).mean().item()}, f"{protocol} ranked by cosine")
