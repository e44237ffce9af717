"""Probes without a fit: nearest neighbours by cosine, and retrieval.

Shapes: N training and M test images, D embedding, K classes, k neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval
from crlf.metrics.knn import HEADLINE, TEMPERATURE, chunk_rows, nearest, tied, vote, weighted_vote

KS = (1, 10, 20, 200)
QUERIES = 1000  # test images that retrieval asks for


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
