"""Rows of results, one for each (set, contestant, seed), and the tables that they make.

A row holds for every image whether each probe was right, so that two contestants are compared image by image. Over
several seeds an image counts with the share of the seeds in which it was right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.photos.protocol import Correct

PROBES = {"linear": "linear", "knn": "kNN", "few": "5 labels"}
Z = 1.96  # of 95 % of a normal distribution, which a mean of hundreds of images has
SEVERAL = "all sets"


def row_of(correct: Correct) -> dict[str, Any]:
    """Plain values: a string of 0 and 1 for the linear probe and for kNN, a list of shares for few labels."""
    bits = {probe: "".join(str(int(one)) for one in getattr(correct, probe)) for probe in ("linear", "knn")}
    few = [None if math.isnan(share) else round(share, 4) for share in correct.few.tolist()]
    return {**bits, "few": few}


def right(row: dict[str, Any], probe: str) -> np.ndarray:
    """The inverse of `row_of`: float64 (N,)."""
    if probe == "few":
        return np.array([math.nan if share is None else share for share in row["few"]])
    return np.frombuffer(row[probe].encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, on a line of its own even if the last one was cut off."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


class Mean(NamedTuple):
    """A mean of images in points, and half of its 95 % interval."""

    points: float
    half: float

    def __str__(self) -> str:
        return f"{self.points:.1f} ± {self.half:.1f}"

    @property
    def signed(self) -> str:
        """As a difference; a star where 0 lies outside of the interval."""
        return f"{self.points:+.1f} ± {self.half:.1f}".replace("-", "−") + " *" * (abs(self.points) > self.half)


def mean(values: np.ndarray) -> Mean:
    """Of float (N,); what is not a number was never tested."""
    values = 100 * values[~np.isnan(values)]
    return Mean(float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values)))


def together(means: Sequence[Mean]) -> Mean:
    """The mean over sets, each of the same weight."""
    half = math.sqrt(sum(one.half**2 for one in means)) / len(means)
    return Mean(sum(one.points for one in means) / len(means), half)


class Results:
    """Rows by set and contestant."""

    def __init__(self, rows: Iterable[dict[str, Any]]):
        self.rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for row in rows:
            self.rows.setdefault((row["set"], row["contestant"]), {})[row["seed"]] = row  # the last of several

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.rows))

    def contestants(self, name: str) -> list[str]:
        return [who for one, who in self.rows if one == name]

    def images(self, name: str, who: str, probe: str) -> np.ndarray:
        """For each image of a set the share of the seeds in which it was right: float64 (N,)."""
        shares = np.stack([right(row, probe) for row in self.rows[name, who].values()])  # (seeds, N)
        tested = ~np.isnan(shares)
        total = np.where(tested, shares, 0).sum(axis=0)
        return np.divide(total, tested.sum(axis=0), out=np.full(len(total), np.nan), where=tested.any(axis=0))

    def score(self, name: str, who: str) -> float:
        """The mean of the three probes, in points."""
        return sum(mean(self.images(name, who, probe)).points for probe in PROBES) / len(PROBES)

    def difference(self, name: str, who: str, other: str, probe: str) -> Mean:
        """How much better a contestant is than another, on the same images."""
        return mean(self.images(name, who, probe) - self.images(name, other, probe))

    def size(self, name: str, who: str) -> int:
        return next(iter(self.rows[name, who].values()))["image_size"]

    def several_sizes(self, name: str) -> bool:
        """Whether the frozen network was measured at more than one size."""
        return len({self.size(name, who) for who in self.contestants(name) if who.startswith("imagenet ")}) > 1

    def imagenet(self, name: str, size: int | None = None) -> str | None:
        """The frozen network at a size, or at any, with the better of its readouts; None where it has no row."""
        found = [
            who
            for who in self.contestants(name)
            if who.startswith("imagenet ") and size in (None, self.size(name, who))
        ]
        return max(found, key=lambda who: self.score(name, who), default=None)


def summary(found: Results) -> list[dict[str, Any]]:
    """A row for each set and contestant, without the single images: for the records."""
    rows = []
    for name in found.sets:
        for who in found.contestants(name):
            means = {what: str(mean(found.images(name, who, key))) for key, what in PROBES.items()}
            seeds = len(found.rows[name, who])
            rows.append({"set": name, "contestant": who, "px": found.size(name, who), "seeds": seeds, **means})
    return rows


def markdown(results: Results) -> str:
    """A table of accuracies a set, then the differences of each trained encoder."""
    parts = [accuracies(results, name) for name in results.sets]
    trained = dict.fromkeys(who for name in results.sets for who in results.contestants(name) if who[:5] == "crlf ")
    return "\n\n".join(parts + [differences(results, who) for who in trained])


def accuracies(results: Results, name: str) -> str:
    """The contestants of a set: mean over the seeds, and the 95 % interval over other images."""
    lines = []
    for who in results.contestants(name):
        rows = results.rows[name, who]
        means = [str(mean(results.images(name, who, probe))) for probe in PROBES]
        lines.append([who, str(results.size(name, who)), str(len(rows)), *means, f"{results.score(name, who):.1f}"])
    first = next(iter(results.rows[name, results.contestants(name)[0]].values()))
    title = f"**{name}**: {len(first['linear']):,} photographs, {first['classes']} classes, k = {first['k']} for kNN, %"
    return title + "\n\n" + table(["", "px", "seeds", *PROBES.values(), "mean"], lines)


def differences(results: Results, who: str) -> str:
    """A trained encoder less others on the same images, set by set and together."""
    lines: list[list[str]] = []
    found: dict[str, list[list[Mean]]] = {}
    for name in [name for name in results.sets if (name, who) in results.rows]:
        same = results.imagenet(name, results.size(name, who))
        best = results.imagenet(name) if results.several_sizes(name) else None
        others = {"untrained": "untrained", "pixels": "pixels", "ImageNet, same size": same, "ImageNet, any size": best}
        for what, other in others.items():
            if other is None or (name, other) not in results.rows:
                continue
            means = [results.difference(name, who, other, probe) for probe in PROBES]
            found.setdefault(what, []).append(means)
            lines.append([name, what if other == what else f"{what} ({other})", *cells(means)])
    for what, by_set in found.items():
        lines.append([SEVERAL, what, *cells([together(column) for column in zip(*by_set, strict=True)])])
    title = f"**{who}** less another on the same images, points; * outside of the 95 % interval"
    return title + "\n\n" + table(["set", "less", *PROBES.values(), "mean"], lines)


def cells(means: Sequence[Mean]) -> list[str]:
    """Differences, and the mean of the three."""
    average = sum(one.points for one in means) / len(means)
    return [*(one.signed for one in means), f"{average:+.1f}".replace("-", "−")]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown: the first column to the left, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))
