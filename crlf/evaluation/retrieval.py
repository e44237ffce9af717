"""The retrieval probe: ranks training images by cosine similarity.

Shapes: N training and M test images, D embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crlf.evaluation.cross_validation import same
from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.cosine import chunk_rows, unit

QUERIES = 1000  # test images at most


def average_precision(relevant: Tensor) -> Tensor:
    """The mean precision at the relevant ranks of each row: bool (M, N), best match first -> float64 (M,).

    Manning, Raghavan and Schütze 2008, Introduction to information retrieval, equation 8.8. 0 if nothing is relevant.
    """
    hits = relevant.cumsum(dim=1).double()
    precision = hits / torch.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(dim=1) / hits[:, -1].clamp(min=1)


def retrieval(embedded: Embedded) -> Found:
    """Mean average precision of test images as queries for the training images of their class, ranked by cosine."""
    rows = np.random.default_rng(0).permutation(len(embedded.test))[:QUERIES]
    train = unit(embedded.train)
    labels, asked = torch.from_numpy(embedded.train_lbl), torch.from_numpy(embedded.test_lbl[rows])
    queries = unit(embedded.test[rows])
    size = max(1, chunk_rows(len(train)) // 8)  # ranks are of int64, and hits of float64
    left_out = torch.zeros(len(rows), 1, dtype=torch.bool)
    if embedded.folds is not None:  # an image finds neither itself nor its copies
        groups = torch.from_numpy(same(embedded.train))
        left_out = groups[rows][:, None] == groups
    precisions = []
    for query, wanted, out in zip(queries.split(size), asked.split(size), left_out.split(size), strict=True):
        order = (query @ train.T).masked_fill(out, -torch.inf).argsort(dim=1, descending=True)
        hits = labels[order] == wanted[:, None]
        precisions.append(average_precision(hits & ~out.expand(len(query), len(train)).gather(1, order)))
    which, among = f"{len(rows):,} test images", f"all {len(train):,} training images"
    if embedded.folds is not None:
        which, among = f"{len(rows):,} images", "all others except copies"
    protocol = f"mean average precision over {which} as queries, {among}"
    return Found({"retrieval_map": torch.cat(precisions).mean().item()}, f"{protocol} ranked by cosine")
