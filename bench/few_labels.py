"""The linear probe with few labels: one scale for all features beside a scale for each, on embeddings of real images.

The embeddings are those of the run that `python -m bench cifar10` keeps (4,000 of its training images), and of an
ImageNet network on the photographs of `python -m bench transfer`, if these were made.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import cifar10
from bench.timing import mean_and_spread
from crlf.data import cache_dir
from crlf.errors import InputError
from crlf.evaluation import logistic_regression
from crlf.evaluation.few_labels import draw
from crlf.runtime.devices import one_thread

EACH = (1, 5, 10)  # labels per class
DRAWS = 6
IMAGES = 4000
SETS = ("foods", "things", "sky")


def measure() -> list[dict[str, Any]]:
    """Mean accuracy and mean confidence, in percent, over draws of the labels."""
    with one_thread():
        return [row for name, x, y in embedded() for each in EACH for row in compared(name, x, y, each)]


def embedded() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Sets of embeddings that are there: name, float32 (N, D), int (N,)."""
    folder = cifar10.kept()
    if not (folder / "train_emb.npy").exists():
        raise InputError(f"{str(folder)!r} holds no embeddings: `python -m bench cifar10` keeps a run there")
    some = np.random.default_rng(0).permutation(50_000)[:IMAGES]
    yield "CIFAR-10", np.load(folder / "train_emb.npy")[some], np.load(folder / "train_lbl.npy")[some]
    for name in SETS:
        folder = cache_dir() / "photos" / "transfer" / f"{name}, 128"
        if (folder / "train_emb.npy").exists():
            ids = json.loads((folder / "train_ids.json").read_text(encoding="utf-8"))
            classes, y = np.unique([Path(file).parent.name for file in ids], return_inverse=True)
            yield f"{name}, {len(classes)} classes", np.load(folder / "train_emb.npy"), y


def compared(name: str, x: np.ndarray, y: np.ndarray, each: int) -> Iterator[dict[str, Any]]:
    if each >= np.bincount(y).min():
        return  # none would be left to test
    before = logistic_regression.ONE_SCALE
    try:
        for what, fewer_than in (("a scale for each feature", 0), ("one scale", before)):
            logistic_regression.ONE_SCALE = fewer_than
            found = [once(x, y, each, seed) for seed in range(DRAWS)]
            yield {
                "images": name,
                "labels a class": each,
                "features": what,
                "accuracy %": mean_and_spread([100 * right for right, _ in found]),
                "confidence %": f"{100 * statistics.mean(sure for _, sure in found):.1f}",
            }
    finally:
        logistic_regression.ONE_SCALE = before


def once(x: np.ndarray, y: np.ndarray, each: int, seed: int) -> tuple[float, float]:
    """Accuracy and mean confidence on all images without a label."""
    rows = draw(y, each, seed)
    rest = np.setdiff1d(np.arange(len(y)), rows)
    found = logistic_regression.linear(x[rows], y[rows], x[rest])
    assert found.probabilities is not None
    return float((found.predictions == y[rest]).mean()), float(found.probabilities.max(axis=1).mean())
