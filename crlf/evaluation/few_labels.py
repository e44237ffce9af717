"""How few labels will do: the linear probe with a handful of them, drawn several times."""

from __future__ import annotations

from typing import Any

import numpy as np

from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.logistic_regression import linear
from crlf.runtime.devices import one_thread

SHARES = (0.01, 0.1)  # of the training labels
EACH = (1, 5, 10, 50)  # labels a class
DRAWS = 5


def few_label(embedded: Embedded) -> Found:
    """The linear probe's accuracy with some labels only: mean and standard deviation over draws."""
    counts = np.unique(embedded.train_lbl, return_counts=True)[1]
    smallest = int(counts.min())
    wanted: dict[str, int | float] = {f"{each} a class": each for each in EACH if each <= smallest}
    wanted |= {f"{100 * share:g} %": share for share in SHARES if round(share * smallest) >= 1}
    with one_thread():
        table = {name: over_draws(embedded, amount) for name, amount in wanted.items()}
    how = f"the linear probe fitted on few labels, the same number or share of each class; mean ± sd over {DRAWS} draws"
    return Found({"few_label": table}, how)


def over_draws(embedded: Embedded, amount: int | float) -> dict[str, Any]:
    """The labels of a draw, and mean and sample standard deviation of the accuracies."""
    accuracies = []
    for seed in range(DRAWS):
        rows = draw(embedded.train_lbl, amount, seed)
        result = linear(embedded.train[rows], embedded.train_lbl[rows], embedded.test)
        accuracies.append(embedded.accuracy(result.predictions))
    return {"labels": len(rows), "mean": float(np.mean(accuracies)), "sd": float(np.std(accuracies, ddof=1))}


def draw(labels: np.ndarray, amount: int | float, seed: int) -> np.ndarray:
    """Rows with a number (int) or a share (float) of each class: int64, of int (N,)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = [order[labels[order] == k] for k in np.unique(labels)]
    return np.concatenate([part[: amount if isinstance(amount, int) else round(amount * len(part))] for part in rows])
