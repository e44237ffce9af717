"""The nearest rows are those of a full, stable sort: in parts, with ties and copies, and of queries of zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crlf.metrics import cosine
from crlf.metrics.cosine import best, top_k, unit


def by_sorting(queries: torch.Tensor, rows: torch.Tensor, k: int) -> torch.Tensor:
    return (queries @ rows.T).sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("size", [1, 7, 50, 100])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_it_is_a_full_sort(size: int, k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cosine, "CHUNK_BYTES", 4 * 7 * 3)  # a few queries at a time
    generator = torch.Generator().manual_seed(0)
    rows, queries = (torch.randint(-3, 4, (n, 6), generator=generator).float() for n in (100, 9))  # whole: exact ties
    found = top_k(queries, rows.split(size), k)
    assert torch.equal(found.rows, by_sorting(queries, rows, k))
    assert torch.equal(found.cosines, (queries @ rows.T).gather(1, found.rows))


def test_of_equal_ones_the_first_rows_are_kept():
    values = torch.tensor([[1.0, 3, 3, 2, 3, 3], [0, 0, 0, 0, 0, 0]])
    assert best(values, 2).rows.tolist() == [[1, 2], [0, 1]]
    assert best(values, 6).rows.tolist() == [[1, 2, 4, 5, 3, 0], [0, 1, 2, 3, 4, 5]]
    copies = unit(torch.ones(1000, 4))
    assert top_k(copies[:3], copies.split(300), 5).rows.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_row_of_zeros_is_as_near_as_a_right_angle():
    rows = unit(np.array([[0, 0], [1, 0], [-1, 0]], dtype=np.float32))
    assert rows[0].tolist() == [0, 0]
    found = top_k(rows[1:2], [rows], 3)
    assert found.rows.tolist() == [[1, 0, 2]] and found.cosines.tolist() == [[1, 0, -1]]


def test_no_rows_and_no_queries():
    assert top_k(torch.ones(2, 3), [], 5).rows.shape == (2, 0)
    assert top_k(torch.ones(0, 3), [torch.ones(4, 3)], 5).rows.shape == (0, 4)
