"""Bars that compare the encoder with baselines: a group for each measure, the longest bar first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crlf.visualization.report.numbers import called, is_interval, number

WAYS = {
    "linear": ("Linear probe", {
        "linear": ("own", "this encoder"),
        "augmented": ("own", "this encoder, fitted on crops too"),
        "plain_linear": ("own", "this encoder, read plainly"),
        "untrained_linear": ("untrained", "untrained"),
        "pixels_linear": ("raw", "raw pixels"),
        "supervised": ("taught", "same network, trained on labels"),
        "fine_tuning": ("taught", "this encoder, fine-tuned on labels"),
    }),
    "knn": ("Nearest neighbours (kNN)", {
        "knn": ("own", "this encoder"),
        "plain_knn": ("own", "this encoder, read plainly"),
        "untrained_knn": ("untrained", "untrained"),
        "pixels_knn": ("raw", "raw pixels"),
    }),
    "crops": ("Finding an image by a crop of it", {
        "crops": ("own", "this encoder"),
        "untrained_crops": ("untrained", "untrained"),
    }),
}  # fmt: skip
"""Measures, and in each the accuracies: whose they are, which gives the colour, and their names."""


@dataclass(frozen=True)
class Bar:
    """An accuracy."""

    kind: str  # own, untrained, raw, taught or chance
    name: str
    share: float
    interval: tuple[float, float] | None  # of 95 %


def bars(scores: dict[str, Any], searched: int = 0) -> dict[str, list[Bar]]:
    """The bars of each measure, the longest first.

    Args:
        scores: of scores.json.
        searched: images among which a crop looks for its own; 0 where that is not known.
    """
    began = "the weights at the start" if "started_from" in scores else "untrained encoder"
    groups, told = {}, set()
    for measure, (title, ways) in WAYS.items():
        names = {way: (kind, began if kind == "untrained" else name) for way, (kind, name) in ways.items()}
        found = [made for way, (kind, name) in names.items() if (made := bar(scores, way, kind, name))]
        chance = (1 / searched if searched else None) if measure == "crops" else number(scores, "chance")
        if found and chance is not None:
            by = "chance" if measure == "crops" else "most frequent class"
            found.append(Bar("chance", by, chance, None))
        if found:
            groups[title] = sorted(found, key=lambda one: -one.share)
        told |= {f"{way}_accuracy" for way in ways}
    rest = [key for key in scores if key.endswith("_accuracy") and key not in told]
    others = [made for key in rest if (made := bar(scores, key.removesuffix("_accuracy"), "own", called(key)))]
    return groups | ({"Other measures": sorted(others, key=lambda one: -one.share)} if others else {})


def bar(scores: dict[str, Any], way: str, kind: str, name: str) -> Bar | None:
    """The bar of WAY_accuracy; None if it was not measured."""
    share, limits = number(scores, f"{way}_accuracy"), scores.get(f"{way}_interval")
    if share is None:
        return None
    return Bar(kind, name, share, (limits[0], limits[1]) if limits and is_interval(limits) else None)
