"""The confusion matrix as a table that can be read aloud, a cell of which shows its images; of many classes, the most
frequent confusions and the hardest classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from crlf.text import percent
from crlf.visualization.report.html import Section, section
from crlf.visualization.report.pictures import Shown

MOST = 20  # classes of a matrix
LISTED = 12  # confusions, and hardest classes, where there are more
DEEP = 0.75  # depth from which a cell is dark enough for light letters


def confusion(shown: Shown, labels: np.ndarray, predicted: np.ndarray) -> Section:
    """What all images of the split were taken for; a cell or a row is a button that shows its images."""
    K = len(shown.names)
    counts = np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    told = {"right": percent(counts.trace() / max(1, counts.sum())), "total": f"{counts.sum():,}", "split": shown.split}
    if K > MOST:
        return section(
            "Confusions", "confusions.html", "confusion",
            **told, pairs=pairs(counts, share, shown.names), hardest=hardest(counts, share, shown.names),
        )  # fmt: skip
    worst = max(float((share * ~np.eye(K, dtype=bool)).max()), 1e-9)
    rows = [
        {"cells": cells(i, counts, share, worst), "recall": percent(share[i, i]) if counts[i].any() else "–"}
        for i in range(K)
    ]
    return section("Confusion matrix", "confusion.html", "confusion", **told, names=shown.names, rows=rows)


def cells(i: int, counts: np.ndarray, share: np.ndarray, worst: float) -> list[dict[str, Any]]:
    """A row: what each class was taken for; a mistake is as deep as it is large beside the worst."""
    return [
        {"kind": "right" if i == j else "off", "tone": tone(depth), "deep": depth >= DEEP, "count": count}
        for j, count in enumerate(counts[i].tolist())
        for depth in [float(share[i, j]) / (1 if i == j else worst)]
    ]


def tone(depth: float) -> float:
    """How much of the colour a cell takes, in percent: none between 60 and 84, where no letters would stand out."""
    return 80 * depth if depth < DEEP else 84 + 64 * (depth - DEEP)


def pairs(counts: np.ndarray, share: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """The most frequent confusions: a class, what it was taken for, and how many of how many."""
    K = len(counts)
    off = np.where(np.eye(K, dtype=bool), 0, counts).ravel()
    order = np.lexsort((-share.ravel(), -off))[:LISTED].tolist()
    return [
        {
            "true": i,
            "said": j,
            "name": names[i],
            "other": names[j],
            "count": int(counts[i, j]),
            "of": int(counts[i].sum()),
        }
        for i, j in (divmod(place, K) for place in order)
        if counts[i, j] and i != j
    ]


def hardest(counts: np.ndarray, share: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """The classes of which the least are right, the hardest first."""
    found = [k for k in np.argsort(share.diagonal(), kind="stable").tolist() if counts[k].any()][:LISTED]
    return [{"class": k, "name": names[k], "share": float(share[k, k]), "of": int(counts[k].sum())} for k in found]
