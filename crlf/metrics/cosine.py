"""Exact nearest neighbours by cosine similarity, used by kNN, the search and the report.

Shapes: Q queries, N rows to search, D embedding, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 2**28  # memory for the similarities of one chunk of queries


class Nearest(NamedTuple):
    """The nearest rows of each query, nearest first; ties are in the order of the rows."""

    rows: Tensor  # int64 (Q, k)
    cosines: Tensor  # float32 (Q, k)


def unit(rows: np.ndarray | Tensor) -> Tensor:
    """Scale rows to length 1: float (N, D) -> float (N, D). A row of zeros stays zero, so its cosines are 0."""
    if isinstance(rows, np.ndarray) and not rows.flags.writeable:
        rows = rows.copy()  # torch warns of read-only arrays
    return F.normalize(torch.as_tensor(rows), dim=1)


def top_k(queries: Tensor, parts: Iterable[Tensor], k: int) -> Nearest:
    """The k rows with the largest cosine similarity to each query.

    Args:
        queries: float32 (Q, D), rows of length 1.
        parts: the rows to search, of length 1, as arrays float32 (n, D) in order, so that they need not fit in memory.
        k: the number of rows per query; fewer if there are fewer rows.
    """
    found = Nearest(torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0))
    first = 0
    for part in parts:
        chunks = queries.split(chunk_rows(len(part)))
        own = [best(chunk @ part.T, k) for chunk in chunks]
        rows = torch.cat([found.rows, torch.cat([one.rows for one in own]) + first], dim=1)
        cosines = torch.cat([found.cosines, torch.cat([one.cosines for one in own])], dim=1)
        cosines, order = cosines.sort(dim=1, descending=True, stable=True)
        found = Nearest(rows.gather(1, order)[:, :k], cosines[:, :k])
        first += len(part)
    return found


def best(cosines: Tensor, k: int) -> Nearest:
    """The k largest values of each row: float (Q, n) -> (Q, min(k, n)).

    torch.topk does not define the order of ties or which of them it drops. If the k-th value equals the next one, the
    whole row is sorted.
    """
    n = cosines.shape[1]
    values, places = cosines.topk(min(k + 1, n), dim=1)
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    if n > k:
        tied = values[:, k - 1] == values[:, k]
        if tied.any():
            places[tied, :k] = cosines[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return Nearest(places[:, :k], values[:, :k])


def chunk_rows(others: int) -> int:
    """The number of queries per chunk whose similarities to `others` rows fit in CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * max(1, others)))
