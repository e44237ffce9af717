"""Compares runs on the same test images, and tells which differences are within noise.

Each run is compared with the first image by image. Only images that exactly one of the two runs predicts correctly
matter, so the intervals are narrower than two separate ones. They cover the choice of test images, not the seed.

Shapes: M test images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crlf.errors import InputError
from crlf.metrics.intervals import LEVEL, interval, paired_interval
from crlf.runs.run import Run, difference
from crlf.text import percent

HEALTH = {"h_rankme": "RankMe", "h_alignment": "alignment", "h_uniformity": "uniformity"}  # of the features
SETTINGS = 6  # at most this many differing settings are listed


class Tested(NamedTuple):
    """A run, and which test images its linear probe predicts correctly."""

    run: Run
    labels: np.ndarray  # int64 (M,)
    right: np.ndarray  # bool (M,)


def compare(run: Run | str | Path, *others: Run | str | Path) -> dict[str, Any]:
    """Compare the linear probes of runs with that of the first, overall and class by class. Without labels, compare how
    often a crop finds its image.

    A difference is within noise if the 95 % interval of the paired bootstrap contains 0. For K classes each interval
    has level 1 - 0.05 / K, so that all of them hold together with 95 % (Bonferroni).

    Args:
        run: the run folder to compare the others with.
        others: one or more run folders.

    Returns:
        The printed values: `runs`, `classes`, and the `settings` that differ.

    Raises:
        InputError: fewer than two runs, a run without scores, or runs with different test images.
    """
    runs = [Run.open(folder) for folder in (run, *others)]
    if len(runs) < 2:
        raise InputError(f"compare needs at least two runs, not only {str(runs[0].path)!r}")
    if all(one.unlabelled for one in runs):
        return without_labels(runs)
    tested = [tests_of(one) for one in runs]
    for other in tested[1:]:
        require_same_images(tested[0], other)
    found = {
        "runs": [overall(tested[0].right, one) for one in tested],
        "classes": by_class(tested),
        "settings": [difference(tested[0].run.settings, one.run.settings) for one in tested],
    }
    print(text(found, len(tested[0].labels), tested[0].run.cross_validated))
    return found


def tests_of(run: Run) -> Tested:
    """The predictions and labels of a run.

    Raises:
        InputError: they are missing or inconsistent.
    """
    if run.unlabelled:
        raise InputError(f"run {str(run.path)!r} has no labels, but others have: compare runs of the same images")
    labels, predicted = run.array("test_lbl.npy"), run.array("test_pred.npy")
    if labels.ndim != 1 or not len(labels) or labels.shape != predicted.shape:
        path = str(run.file("test_pred.npy"))
        raise InputError(f"{path!r} must have a prediction for each label {labels.shape}, not {predicted.shape}")
    return Tested(run, labels, labels == predicted)


def require_same_images(a: Tested, b: Tested) -> None:
    """Raise InputError unless two runs were tested on the same images in the same order."""
    names = f"{str(a.run.path)!r} and {str(b.run.path)!r}"
    if a.run.cross_validated != b.run.cross_validated:
        one, other = (a, b) if a.run.cross_validated else (b, a)
        why = f"{str(one.run.path)!r} is cross-validated, and {str(other.run.path)!r} holds test images out"
        raise InputError(f"runs to compare must have the same test images: {why}")
    data = [one.run.settings.get("data", "?") for one in (a, b)]
    if len(a.labels) != len(b.labels):
        counts = " and ".join(f"{len(one.labels):,} of {which}" for one, which in zip((a, b), data, strict=True))
        raise InputError(f"runs to compare must have the same test images: {names} have {counts}")
    if not (a.labels == b.labels).all() or data[0] != data[1] or a.run.ids("test") != b.run.ids("test"):
        differ = f"{data[0]} and {data[1]}" if data[0] != data[1] else "others, or in another order"
        raise InputError(f"runs to compare must have the same test images: {names} have {differ}")


# Without labels


def without_labels(runs: Sequence[Run]) -> dict[str, Any]:
    """Print how often a crop finds its image in each run, and the measures of the features.

    Which images were found is not stored, so a difference has the interval of two independent shares (Newcombe 1998,
    Interval estimation for the difference between independent proportions, method 10), wider than a paired one.

    Raises:
        InputError: a run was not probed, or has other images than the first.
    """
    for one in runs:
        if not isinstance(one.scores.get("crops_accuracy"), float):
            how = "the score that is compared without labels"
            raise InputError(f"run {str(one.path)!r} was not probed: `crlf probe {one.path}` measures {how}")
        what = [(run.ids("train"), run.ids("test"), run.scores["protocol"].get("crops")) for run in (runs[0], one)]
        if what[0] != what[1]:
            names = f"{str(runs[0].path)!r} and {str(one.path)!r}"
            raise InputError(f"runs to compare must have the same images: {names} have others, or in another order")
    found: dict[str, Any] = {
        "runs": [by_crops(runs[0].scores, one) for one in runs],
        "classes": [],
        "settings": [difference(runs[0].settings, one.settings) for one in runs],
    }
    rows: list[tuple[str, ...]] = [
        ("", "crop finds image", "95 % interval", *HEALTH.values(), "against 1, in points", "", "run")
    ]
    for number, (row, settings) in enumerate(zip(found["runs"], found["settings"], strict=True), start=1):
        low, high = row["interval"]
        health = (f"{row[key]:.3g}".replace("-", "−") if row[key] is not None else "–" for key in HEALTH)
        against = f"{points(row['difference'])} ({' to '.join(map(points, row['difference_interval']))})"
        rows.append(
            (
                str(number), percent(row["crops_accuracy"]), f"{100 * low:.1f} to {percent(high)}", *health,
                against if number > 1 else "", row["verdict"] if number > 1 else "",
                shown(row["run"]) + differing(settings),
            )
        )  # fmt: skip
    note = "Without labels: how often an image is the nearest neighbour of a crop of it."
    more = "This shows whether training worked, not whether the embeddings separate classes."
    print(f"{columns(rows)}\n\n{note}\n{more}")
    return found


def by_crops(first: dict[str, Any], run: Run) -> dict[str, Any]:
    """The share of a run's images found by a crop, the difference from the first run, and the final features."""
    scores, log = run.scores, [row for row in run.log() if isinstance(row.get("h_rankme"), float)]
    (p, (low, high)), (q, (bottom, top)) = ((s["crops_accuracy"], s["crops_interval"]) for s in (first, scores))
    limits = (q - p - ((q - bottom) ** 2 + (high - p) ** 2) ** 0.5, q - p + ((top - q) ** 2 + (p - low) ** 2) ** 0.5)
    return {
        "run": str(run.path),
        "crops_accuracy": q,
        "interval": (bottom, top),
        **{key: log[-1].get(key) if log else None for key in HEALTH},
        "difference": q - p,
        "difference_interval": limits,
        "verdict": verdict(*limits),
    }


# The numbers


def overall(first: np.ndarray, tested: Tested) -> dict[str, Any]:
    """A run's accuracy and how it differs from the first's, bool (M,)."""
    low, high = paired_interval(first, tested.right)
    return {
        "run": str(tested.run.path),
        "linear_accuracy": float(tested.right.mean()),
        "interval": interval(tested.right),
        "knn_accuracy": tested.run.scores.get("knn_accuracy"),
        "difference": float(tested.right.mean() - first.mean()),
        "difference_interval": (low, high),
        "verdict": verdict(low, high),
    }


def by_class(tested: Sequence[Tested]) -> list[dict[str, Any]]:
    """The accuracy of each class in the first run, and the differences of the others."""
    first, names = tested[0], class_names(tested[0].run)
    labels = np.unique(first.labels)
    level, rows = 1 - (1 - LEVEL) / len(labels), []
    for k in labels:
        own = first.labels == k
        limits = [paired_interval(first.right[own], other.right[own], level) for other in tested[1:]]
        rows.append(
            {
                "class": names[k] if 0 <= k < len(names) else str(k),
                "images": int(own.sum()),
                "accuracy": float(first.right[own].mean()),
                "differences": [float(other.right[own].mean() - first.right[own].mean()) for other in tested[1:]],
                "verdicts": [verdict(*pair) for pair in limits],
            }
        )
    return rows


def verdict(low: float, high: float) -> str:
    """The verdict on the interval of a difference."""
    return "better" if low > 0 else "worse" if high < 0 else "within noise"


def class_names(run: Run) -> list[str]:
    return [" ".join(name.split()) for name in run.classes]


# The text


def text(found: dict[str, Any], images: int, cross_validated: bool = False) -> str:
    where = f"all {images:,} images, cross-validated" if cross_validated else f"the same {images:,} test images"
    parts = [f"Linear probe on {where}", overview(found), changes(found)]
    note = "Within noise: the 95 % interval of the difference contains 0. It covers the choice of"
    return "\n\n".join([*parts, f"{note}\ntest images, not the seed: compare several runs of each setting."])


def overview(found: dict[str, Any]) -> str:
    rows = [("", "linear", "95 % interval", "kNN", "against 1, in points", "", "run")]
    for number, (row, settings) in enumerate(zip(found["runs"], found["settings"], strict=True), start=1):
        low, high = row["interval"]
        knn = row["knn_accuracy"]
        against = f"{points(row['difference'])} ({' to '.join(map(points, row['difference_interval']))})"
        rows.append(
            (
                str(number),
                percent(row["linear_accuracy"]),
                f"{100 * low:.1f} to {percent(high)}",
                "–" if knn is None else percent(knn),
                against if number > 1 else "",
                row["verdict"] if number > 1 else "",
                shown(row["run"]) + differing(settings),
            )
        )
    return columns(rows)


def differing(settings: list[tuple[str, Any, Any]]) -> str:
    named = [f"{name} {shown(str(here))} → {shown(str(there))}" for name, here, there in settings[:SETTINGS]]
    more = [f"{len(settings) - SETTINGS} more"] * (len(settings) > SETTINGS)
    return f" ({', '.join(named + more)})" if settings else ""


def changes(found: dict[str, Any]) -> str:
    numbers = range(2, len(found["runs"]) + 1)
    rows = [("accuracy of 1", "images", *(f"{n} against 1" for n in numbers), "class")]
    for row in found["classes"]:
        changed = (
            points(difference) + (" *" if judged != "within noise" else "  ")
            for difference, judged in zip(row["differences"], row["verdicts"], strict=True)
        )
        rows.append((percent(row["accuracy"]), f"{row['images']:,}", *changed, shown(row["class"])))
    beyond = sum(judged != "within noise" for row in found["classes"] for judged in row["verdicts"])
    return columns(rows) + f"\n* beyond noise: {beyond} of {len(found['classes']) * len(numbers)}"


def points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def shown(name: str) -> str:
    """A name, quoted if it has control characters."""
    return name if name.isprintable() else repr(name)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows in right-aligned columns, except the last, which may have any length and script."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(w) for cell, w in zip(row[:-1], widths, strict=False)) for row in rows)
    return "\n".join(f"{line}  {row[-1]}".rstrip() for line, row in zip(lines, rows, strict=True))
