"""The linear probe with few labels, averaged over several random draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from crlf.evaluation.cross_validation import same
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.logistic_regression import linear
from crlf.runtime.devices import one_thread

SHARES = (0.01, 0.1)  # of the training labels
EACH = (1, 5, 10, 50)  # labels per class
DRAWS = 5


def few_label(embedded: Embedded) -> Found:
    """The linear probe's accuracy with some labels only: mean and standard deviation over draws."""
    counts = np.unique(embedded.train_lbl, return_counts=True)[1]
    smallest = int(counts.min())
    most = smallest if embedded.folds is None else smallest - 1  # at least one is left to test
    wanted: dict[str, int | float] = {f"{each} a class": each for each in EACH if each <= most}
    wanted |= {f"{100 * share:g} %": share for share in SHARES if round(share * smallest) >= 1}
    with one_thread():
        table = {name: over_draws(embedded, amount) for name, amount in wanted.items()}
    tested = "" if embedded.folds is None else ", tested on all other images"
    how = f"the linear probe fitted on few labels, the same number or share of each class{tested}"
    return Found({"few_label": table}, f"{how}; mean ± sd over {DRAWS} draws")


def over_draws(embedded: Embedded, amount: int | float) -> dict[str, Any]:
    """The number of labels, and the mean and sample standard deviation of the accuracies."""
    accuracies, groups = [], None if embedded.folds is None else same(embedded.train)
    for seed in range(DRAWS):
        rows = draw(embedded.train_lbl, amount, seed)
        asked = np.full(len(embedded.test), True) if groups is None else ~np.isin(groups, groups[rows])
        result = linear(embedded.train[rows], embedded.train_lbl[rows], embedded.test[asked])
        accuracies.append(float((result.predictions == embedded.test_lbl[asked]).mean()))
    return {"labels": len(rows), "mean": float(np.mean(accuracies)), "sd": float(np.std(accuracies, ddof=1))}


def draw(labels: np.ndarray, amount: int | float, seed: int) -> np.ndarray:
    """Draw rows with a number (int) or a share (float) of each class: labels int (N,) -> rows int64 (n,)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = [order[labels[order] == k] for k in np.unique(labels)]
    return np.concatenate([part[: amount if isinstance(amount, int) else round(amount * len(part))] for part in rows])
