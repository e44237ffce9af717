"""Search among 200,000 embeddings of 512 numbers: CRLF's exact scan beside scikit-learn and, where installed, faiss.

One question, and a thousand at once. An index has to be filled before the first question; a scan has not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from bench.timing import in_turn
from crlf.embedding.table import GROUP
from crlf.inference.search import nearest
from crlf.metrics.cosine import unit

ROWS, WIDTH, K = 200_000, 512, 10
QUESTIONS = (1, 1000)


def faiss_index(rows: np.ndarray) -> Any:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def measure(rounds: int = 5, count: int = ROWS) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, WIDTH)).astype(np.float32)
    rows = unit(rows).numpy()
    queries = rows[: max(QUESTIONS)]

    def parts() -> Iterator[np.ndarray]:
        return (rows[start : start + GROUP] for start in range(0, count, GROUP))

    brute = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(rows)
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "CRLF, exact": lambda asked: nearest(asked, parts(), K),
        "scikit-learn, exact": lambda asked: brute.kneighbors(asked),
    }
    fill: dict[str, Callable[[], object]] = {}
    try:
        index = faiss_index(rows)
    except ImportError:
        pass
    else:
        ways["faiss, exact"] = lambda asked: index.search(asked, K)
        fill["faiss, exact"] = lambda: faiss_index(rows)
    calls = {(name, n): (lambda way=way, n=n: way(queries[:n])) for name, way in ways.items() for n in QUESTIONS}
    seconds = in_turn({f"{name} {n}": call for (name, n), call in calls.items()} | fill, rounds)
    return [
        {
            "way": name,
            "seconds_to_fill": statistics.median(seconds[name]) if name in fill else "none",
            **{f"seconds_for_{n:,}": statistics.median(seconds[f"{name} {n}"]) for n in QUESTIONS},
        }
        for name in ways
    ]
