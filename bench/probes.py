"""Linear probe and kNN beside scikit-learn's, on 50,000 and 10,000 embeddings of 512 numbers.

The embeddings are drawn to look like an encoder's: ten overlapping classes, features correlated and of unlike scales.
scikit-learn fits once, at the C that CRLF chose; CRLF's own time is given with the choice and without. kNN is timed on
all test images, and on 1,000 of them for scikit-learn's.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from bench.timing import in_turn
from crlf.evaluation.logistic_regression import choose_c, fit_linear, linear
from crlf.metrics.knn import knn_predict

WIDTH, CLASSES = 512, 10


def embeddings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 512) and int64 (N,)."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres, mix = fixed.normal(size=(CLASSES, WIDTH)), fixed.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    decay = 1 / np.arange(1, WIDTH + 1) ** 0.7  # most of the variance lies in few directions
    y = random.integers(CLASSES, size=count)
    x = ((centres[y] * 0.8 + 2 * random.normal(size=(count, WIDTH))) * decay) @ mix
    return np.maximum(x, -0.1).astype(np.float32), y


def measure(rounds: int = 1) -> list[dict[str, Any]]:
    (x, y), (test, truth) = embeddings(50_000, 1), embeddings(10_000, 2)
    c = choose_c(x, y).c
    mean, scale = x.mean(axis=0), x.std(axis=0)
    theirs = LogisticRegression(C=c, max_iter=1000)
    neighbours = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(x, y)
    predicted: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> None:
        predicted[name] = value

    things = {
        "linear, CRLF, C chosen": lambda: keep("linear, CRLF, C chosen", linear(x, y, test).predictions),
        "linear, CRLF, one fit": lambda: keep("linear, CRLF, one fit", fit_linear(x, y, c).predict(test)),
        "linear, scikit-learn, one fit": lambda: keep(
            "linear, scikit-learn, one fit", theirs.fit((x - mean) / scale, y).predict((test - mean) / scale)
        ),
        "kNN of 10,000, CRLF": lambda: keep("kNN of 10,000, CRLF", knn_predict(x, y, test)),
        "kNN of 1,000, scikit-learn": lambda: keep("kNN of 1,000, scikit-learn", neighbours.predict(test[:1000])),
    }
    seconds = in_turn(things, rounds)
    return [
        {
            "probe": name,
            "seconds": statistics.median(times),
            "accuracy_%": 100 * float((predicted[name] == truth[: len(predicted[name])]).mean()),
        }
        for name, times in seconds.items()
    ]
