"""The verdict of a trial: one sentence on whether to train, and one on whether more images would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from crlf.pipelines.contestants import Contestant
from crlf.pipelines.judging import PROBES, Difference, Judged, difference

NAMES = {**PROBES, "crops": "finding an image by its crop"}


class Verdict(NamedTuple):
    """The advice of a trial and its reasons."""

    train: bool | None
    """Whether to train; None if these images show no clear difference."""
    best: Contestant
    """The contestant to use."""
    plain: Contestant
    """The best contestant without training."""
    trained: Contestant
    """The best contestant trained on all images."""
    differences: dict[str, Difference]
    """The differences between `trained` and `plain`, by measure."""
    what: str
    """The advice in a sentence."""
    why: str
    """The numbers behind it."""


Marks = Mapping[Contestant, Judged]


def verdict(marks: Marks) -> Verdict:
    """Whether training paid: at least one measure is better beyond its interval, and none is worse beyond it."""
    plain = max((one for one in marks if not one.trained), key=lambda one: marks[one].score)
    trained = max((one for one in marks if one.trained and one.share == 1), key=lambda one: marks[one].score)
    mine, other = marks[trained].right, marks[plain].right
    found = {name: difference(mine[name], other[name]) for name in mine}
    signs = [one.sign for one in found.values()]
    told = ", ".join(f"{NAMES[name]} {points(one)}" for name, one in found.items())
    best, train, what = plain, None, f"Training makes no clear difference: use {plain.name}."
    if max(signs) > 0 and min(signs) >= 0:
        best, train, what = trained, True, f"Train: {trained.name} is better than anything without training."
    elif min(signs) < 0 and max(signs) <= 0:
        train, what = False, f"Do not train: {plain.name} is better."
    elif min(signs) < 0:
        best = max(plain, trained, key=lambda one: marks[one].score)
        what = f"It depends on your use: {trained.name} is better in one measure and {plain.name} in another."
    return Verdict(train, best, plain, trained, found, what, f"{trained.name} minus {plain.name}: {told}.")


def points(one: Difference) -> str:
    """Such as +3.1 points (0.4 to 5.8)."""
    between = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
    return f"{100 * one.mean:+.1f} points ({between})".replace("-", "−")


def curve(marks: Marks) -> list[tuple[float, Judged]]:
    """The learning curve of training from scratch: shares of the images and their results, smallest share first."""
    found = [(one.share, judged) for one, judged in marks.items() if one.kind in ("scratch", "share")]
    return sorted(found, key=lambda point: point[0])


def more_images(marks: Marks) -> str:
    """Whether more images would help, judged by the last step of the learning curve; empty without a curve."""
    points_of_it = curve(marks)
    if len(points_of_it) < 2:
        return ""
    (share, fewer), (_, whole) = points_of_it[-2:]
    found = {name: difference(whole.right[name], fewer.right[name]) for name in whole.right}
    told = ", ".join(f"{NAMES[name]} {points(one)}" for name, one in found.items())
    signs = [one.sign for one in found.values()]
    step = f"from {share:.0%} of the images to all of them, in the same time"
    if max(signs) > 0 and min(signs) >= 0:
        return f"More images would likely help: {step}, {told}."
    if min(signs) < 0 and max(signs) <= 0:
        return f"More images would not help in this time: {step}, {told}."
    return f"It is unclear whether more images would help: {step}, {told}."
