"""Reads and checks the arrays and names of the run folder that figures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crlf.errors import InputError
from crlf.runs.run import CLASSES, Run


class NotDrawn(InputError):
    """The inputs of a figure do not exist (yet), or are too few."""


def needed(run: Run, name: str) -> np.ndarray:
    """An array of the run. If it does not exist, `NotDrawn` names the command that makes it."""
    try:
        return run.array(name)
    except InputError as error:
        raise error if run.file(name).exists() else NotDrawn(str(error)) from None


def embedded(run: Run, least: int) -> tuple[str, np.ndarray, np.ndarray | None, list[str]]:
    """The embeddings that are shown.

    Returns:
        "test", or "training" where no test images were held out, be it that all are tested by cross-validation; the
        embeddings (N, D), their labels (N,) or None, and the names of the classes.
    """
    split, name, embeddings = "test", "test_emb.npy", needed(run, "test_emb.npy")
    if run.cross_validated:
        split = "training"
    if run.unlabelled and not len(embeddings) and run.file("train_emb.npy").exists():
        split, name, embeddings = "training", "train_emb.npy", run.array("train_emb.npy")
    if embeddings.ndim != 2 or 0 in embeddings.shape[1:]:
        raise InputError(f"{name} must be (N, D), not {embeddings.shape}")
    if len(embeddings) < least:
        raise NotDrawn(f"{name} has {len(embeddings)} rows, at least {least} are needed")
    if not np.isfinite(embeddings).all():
        raise InputError(f"{name} must be finite, but holds NaN or infinite values")
    if run.unlabelled:
        return split, embeddings, None, []
    names = class_names(run)
    return split, embeddings, class_indices(run, "test_lbl.npy", names, rows=len(embeddings)), names


def class_names(run: Run) -> list[str]:
    """The names in classes.json, each on one line and short enough for a label."""
    path = run.file(CLASSES)
    if not path.exists():
        raise NotDrawn(f"{str(path)!r} is missing: `crlf embed {run.path}` makes it")
    if not run.classes:
        raise InputError(f"{str(path)!r} must hold the names of classes, not an empty list")
    return [short(name) for name in run.classes]


def short(name: str, most: int = 24) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "?"
    return name if len(name) <= most else name[: most - 1] + "…"


def class_indices(run: Run, name: str, names: Sequence[str], rows: int | None = None) -> np.ndarray:
    """Labels or predictions, int64 (N,), each the index of a name."""
    array = needed(run, name)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise InputError(f"{name} must be whole numbers (N,), not {array.dtype} {array.shape}")
    if not 0 <= array.min() <= array.max() < len(names):
        raise InputError(f"{name} must be in 0..{len(names) - 1}, not {array.min()}..{array.max()}")
    if rows not in (None, len(array)):
        raise InputError(f"{name} must have {rows} rows, not {len(array)}")
    return array.astype(np.int64)
