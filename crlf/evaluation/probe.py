"""Probes: evaluate frozen embeddings with labels that training never saw.

An entry of `PROBES` is a function of `Embedded`, the embeddings of a run with their labels, and returns its scores and
their protocol. Test labels are used only to count correct predictions, never to make them.

Shapes: N training and M test images, D embedding, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crlf.errors import InputError, unknown
from crlf.evaluation import (
    augmented,
    baselines,
    calibration,
    clustering,
    crops,
    few_labels,
    knn,
    linear,
    plain,
    retrieval,
    robustness,
)
from crlf.evaluation.cross_validation import folds_of, same
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.finetune import fine_tuning
from crlf.evaluation.labelled import chance
from crlf.runs.files import save_array
from crlf.runs.payoff import MEASURES, payoff
from crlf.runs.run import SCORES, Run
from crlf.text import duration, percent, say

PROBES: dict[str, Callable[[Embedded], Found]] = {
    "linear": linear.linear,
    "calibration": calibration.calibration,
    "knn": knn.knn,
    "retrieval": retrieval.retrieval,
    "clustering": clustering.clustering,
    "few_label": few_labels.few_label,
    "augmented": augmented.augmented,
    "robustness": robustness.robustness,
    "pixels": baselines.pixels,
    "untrained": baselines.untrained,
    "plain": plain.plain,
    "crops": crops.crops,
    "supervised": baselines.supervised,
    "fine_tuning": fine_tuning,
}
WITHOUT_LABELS = ("crops",)
QUICK = ("linear", "calibration", "knn", "pixels", "untrained")
OF_IMAGES = (*WITHOUT_LABELS, "pixels", "untrained", "plain")  # skipped, with the reason, if the images are missing
LONG = ("supervised", "fine_tuning")  # take about as long as training; run only if named


def probe(
    run: Run | str | Path, *, probes: str = "quick", data_dir: str | Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Evaluate the embeddings of a run. Without labels, measure how often a crop finds its image.

    Writes NAME_accuracy of each probe (a fraction), further numbers, chance and the protocols to scores.json, and the
    predictions and probabilities of the linear probe to test_pred.npy, int64 (M,), and test_prob.npy, float32 (M, K).

    Args:
        run: the run folder.
        probes: names separated by commas. quick: linear, calibration, knn, and pixels and untrained if the images are
            available; without labels, crops. all: every probe except supervised and fine_tuning, which take about as
            long as training.
        data_dir: the folder of the named data sets, for probes that need the images.
        device: where to compute, for probes that need the encoder: cpu, cuda, mps, or auto for the best available.

    Returns:
        The scores of the run.

    Raises:
        InputError: an unknown probe, or embeddings or labels that are missing, damaged, not finite or inconsistent.
    """
    run, names, named = Run.open(run), chosen(probes), asked_for(probes)
    labelled = not run.unlabelled or run.file("train_lbl.npy").exists()
    if not labelled:
        names = [name for name in WITHOUT_LABELS if name in names or named & {"quick", "all"}]
    if not names:
        say(f"no probe was run: the images of {str(run.path)!r} have no labels (--probes crops needs none)")
        return run.scores
    start = time.perf_counter()
    embedded = read(run, data_dir, device) if labelled else unlabelled(run, data_dir, device)
    scores: dict[str, Any] = {"protocol": {}}
    if labelled:
        scores["chance"] = chance(embedded.train_lbl, embedded.test_lbl)
    files: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for number, name in enumerate(names, start=1):
        say(f"probe {number}/{len(names)}: {name}")
        begun = time.perf_counter()
        try:
            found = PROBES[name](embedded)
        except InputError as error:
            if name not in OF_IMAGES or name in named:
                raise
            found = Found({}, f"not measured: {error}")
        scores |= found.scores
        scores["protocol"][name] = found.protocol
        files |= found.files
        seconds[name] = time.perf_counter() - begun
    for name, array in files.items():
        save_array(run.file(name), array)
    run.update_scores(**scores, probe_seconds=time.perf_counter() - start)
    say(reached(scores, seconds, run))
    if found_out := payoff(run.scores):
        say(found_out.sentence)
    return run.scores


def reached(scores: dict[str, Any], seconds: dict[str, float], run: Run) -> str:
    """One line with the main scores, their file, and the time of each probe."""
    names = {"linear": "linear probe", "knn": "kNN", "crops": MEASURES["crops"]}
    found = [f"{text} {percent(scores[key])}" for name, text in names.items() if (key := f"{name}_accuracy") in scores]
    found += [f"chance {percent(scores['chance'])}"] if "chance" in scores else []
    took = ", ".join(f"{name} {duration(passed)}" for name, passed in seconds.items())
    return f"{', '.join(found) or 'measured'}: {str(run.file(SCORES))!r} ({took})"


def chosen(probes: str) -> list[str]:
    """The probes named by `probes`, in the order of the table.

    Raises:
        InputError: an unknown name.
    """
    asked = asked_for(probes)
    for name in sorted(asked - {"quick", "all"}):
        if name not in PROBES:
            raise unknown("probe", name, [*PROBES, "quick", "all"])
    if not asked:
        raise InputError(f"probes must be quick, all, or names separated by commas, not {probes!r}")
    if "quick" in asked:
        asked |= {*QUICK}
    if "all" in asked:
        asked |= {*PROBES} - {*LONG}
    return [name for name in PROBES if name in asked]


def asked_for(probes: str) -> set[str]:
    return {name.strip() for name in probes.split(",")} - {""}


def read(run: Run, data_dir: str | Path | None = None, device: str = "auto") -> Embedded:
    """Load and check the embeddings and labels of a run.

    Raises:
        InputError: they are missing, damaged, not finite or inconsistent.
    """
    train, train_lbl = rows_and_labels(run, "train")
    test, test_lbl = rows_and_labels(run, "test")
    if train.shape[1] != test.shape[1]:
        raise InputError(f"train_emb.npy has {train.shape[1]} columns, but test_emb.npy has {test.shape[1]}")
    if len(np.unique(train_lbl)) < 2:
        raise InputError(f"train_lbl.npy must hold two classes or more, not {len(np.unique(train_lbl))}")
    train, test = at_hand(train, test)
    folds = folds_of(train_lbl, same(train)) if run.cross_validated else None
    return Embedded(train, train_lbl, test, test_lbl, run, data_dir, device, folds)


def unlabelled(run: Run, data_dir: str | Path | None, device: str) -> Embedded:
    """The embeddings of a run without labels, for the probes that need none."""
    none = np.zeros(0, dtype=np.int64)
    return Embedded(run.array("train_emb.npy"), none, run.array("test_emb.npy"), none, run, data_dir, device)


def at_hand(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale very large or small embeddings by a power of two: float32 loses the square of 1e-30, and no probe depends
    on the scale."""
    exponent = int(np.frexp(np.abs(train).max())[1])
    return (train, test) if abs(exponent) <= 20 else (np.ldexp(train, -exponent), np.ldexp(test, -exponent))


def rows_and_labels(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load and check the embeddings, float32 (N, D), and labels, int64 (N,), of a split."""
    rows, labels = run.array(f"{split}_emb.npy"), run.array(f"{split}_lbl.npy")
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows):
        raise InputError(f"{split}_emb.npy must be float32 (N, D), not {rows.dtype} {rows.shape}")
    if labels.shape != rows.shape[:1] or labels.dtype != np.int64:
        raise InputError(
            f"{split}_lbl.npy must be int64 ({len(rows)},) as the embeddings, not {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0:
        raise InputError(f"{split}_lbl.npy must be 0 or more, but row {(labels < 0).argmax()} is {labels.min()}")
    if not np.isfinite(rows).all():
        raise InputError(f"{split}_emb.npy must be finite, but row {np.isfinite(rows).all(axis=1).argmin()} is not")
    return rows, labels
