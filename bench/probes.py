"""The probes on real embeddings: CIFAR-10's 50,000 and 10,000 of 1,792 numbers, after one epoch of the default recipe.

Linear probe and kNN stand beside scikit-learn's. That fits once, at the C that CRLF chose; CRLF's own time is given
with the choice and without. Its kNN is timed on 1,000 of the test images. Then the probes as `crlf probe` runs them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import crlf
from bench.timing import timed
from crlf.evaluation.logistic_regression import choose_c, fit_linear, linear
from crlf.metrics.knn import knn_predict
from crlf.recipe import Recipe
from crlf.runs.run import Run

ASKED = 1000  # test images of scikit-learn's kNN


def measure(data: str = "cifar10", subset: int = 0) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(Recipe(data=data, subset=subset, epochs=1), out=f"{folder}/run", device="cpu")
        crlf.embed(run, device="cpu")
        return [*beside_scikit_learn(run), *as_commands(run)]


def beside_scikit_learn(run: Run) -> list[dict[str, Any]]:
    (x, test), (y, truth) = (
        [np.asarray(run.array(f"{split}_{kind}.npy")) for split in ("train", "test")] for kind in ("emb", "lbl")
    )
    c = choose_c(x, y).c
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-7)
    theirs = LogisticRegression(C=c, max_iter=1000)
    neighbours = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(x, y)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "linear, CRLF, C chosen": lambda: linear(x, y, test).predictions,
        "linear, CRLF, one fit": lambda: fit_linear(x, y, c).predict(test),
        "linear, scikit-learn, one fit": lambda: theirs.fit((x - mean) / scale, y).predict((test - mean) / scale),
        f"kNN of {len(test):,}, CRLF": lambda: knn_predict(x, y, test),
        f"kNN of {min(ASKED, len(test)):,}, scikit-learn": lambda: neighbours.predict(test[:ASKED]),
    }
    return [timed_row(name, way, truth) for name, way in ways.items()]


def timed_row(name: str, way: Callable[[], np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    found = way()
    seconds = time.perf_counter() - start
    return {"probe": name, "seconds": seconds, "accuracy_%": 100 * float((found == truth[: len(found)]).mean())}


def as_commands(run: Run) -> list[dict[str, Any]]:
    """Of these commands the time in which the probes work, without the start of Python."""
    rows = []
    for asked in ("linear,calibration,knn", "quick"):
        seconds = timed(partial(crlf.probe, run, probes=asked, device="cpu"))
        name = f"`crlf probe RUN --probes {asked}`"
        rows.append({"probe": name, "seconds": seconds, "accuracy_%": 100 * run.scores["linear_accuracy"]})
    return rows
