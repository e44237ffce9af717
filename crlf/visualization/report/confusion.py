"""The confusion matrix as a table: it can be read aloud, and a cell shows its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from crlf.text import percent
from crlf.visualization.report.html import Section, section
from crlf.visualization.report.pictures import Shown

MOST = 20  # classes


def confusion(shown: Shown, labels: np.ndarray, predicted: np.ndarray) -> Section | None:
    """The confusion matrix as a table of all images of the split, a cell a button that shows its images."""
    K = len(shown.names)
    if K > MOST:
        return None
    counts = np.bincount(labels * K + predicted, minlength=K * K).reshape(K, K)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    worst = max(float((share * ~np.eye(K, dtype=bool)).max()), 1e-9)
    rows = [
        {"cells": cells(i, counts, share, worst), "recall": percent(share[i, i]) if counts[i].any() else "–"}
        for i in range(K)
    ]
    right = percent(counts.trace() / max(1, counts.sum()))
    return section(
        "Confusion matrix", "confusion.html", "confusion",
        right=right, total=f"{counts.sum():,}", split=shown.split, names=shown.names, rows=rows,
    )  # fmt: skip


def cells(i: int, counts: np.ndarray, share: np.ndarray, worst: float) -> list[dict[str, Any]]:
    """A row: what each class was taken for; a mistake is as deep as it is large beside the worst."""
    return [
        {"kind": "right" if i == j else "off", "depth": share[i, j] / (1 if i == j else worst), "count": count}
        for j, count in enumerate(counts[i].tolist())
    ]
