"""Class folders: labels for evaluation, and the images held out for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from crlf.data.files.layout import FEW, UNLABELLED, Layout, looks_like_a_cameras, looks_like_a_date

HELD_OUT = 0.1  # share of each class that becomes the test split, of many images
MANY = 5000  # labelled images; with fewer, none is held out and all are tested by cross-validation
SHOWN = 3  # names in a message

T = TypeVar("T", bound=Hashable)


class Arranged(NamedTuple):
    """The order, splits and labels of decoded images."""

    train: list[int]
    test: list[int]
    labels: list[int] | None
    """The label of each image, in the original order; -1 for none."""
    classes: list[str]
    unlabelled: list[int] = []  # noqa: RUF012 - nobody writes to it
    """Images without a label, which are also used for training."""
    notes: tuple[str, ...] = ()
    """Messages to print."""
    why: str = ""
    """The reason why possible labels are not used."""


def share_of(asked: float, count: int) -> float:
    """The share of `count` labelled images to hold out: `asked`, or if that is below 0 a share that suits `count`."""
    return asked if asked >= 0 else 0.0 if count < MANY else HELD_OUT


def arrange(found: Layout, digests: Sequence[str], labels: bool = True, share: float = HELD_OUT) -> Arranged:
    """Arrange images by their folders: as splits, and as classes where that is clear.

    Folders are classes if there are two or more, nearly all images are in them, and their names are not dates. A class
    stays a class if none of its images can be held out, or if the test split lacks it.

    Args:
        found: the layout of the folders.
        digests: the SHA-256 of each image.
        labels: whether folders may be classes.
        share: the share of each class to hold out if there is no test split.
    """
    parts: dict[str, list[int]] = {"train": [], "test": [], UNLABELLED: []}
    for row, role in enumerate(found.roles):
        parts.setdefault(role, []).append(row)
    train, test, unlabelled = parts["train"], parts["test"], parts[UNLABELLED]
    reason = not_classes(found, train, test, digests, share) if labels else ""
    if not labels or reason is None or reason:
        why = f"the folders are not used as classes: {reason}" if reason else ""
        return Arranged(sorted(train + unlabelled), test, None, [], [], (*found.notes, *([why] if why else [])), why)
    return in_classes(found, train, test, unlabelled, digests, share)


def in_classes(
    found: Layout, train: list[int], test: list[int], unlabelled: list[int], digests: Sequence[str], share: float
) -> Arranged:
    loose = [row for row in train if not found.folders[row]]
    train = [row for row in train if found.folders[row]]
    classes = sorted({found.folders[row] for row in train})
    places = {name: label for label, name in enumerate(classes)}
    labels = [places.get(folder, -1) if role else -1 for folder, role in zip(found.folders, found.roles, strict=True)]
    for row in unlabelled:
        labels[row] = -1
    notes = [*found.notes, *dates(classes)]
    if loose:
        notes.append(f"{of(loose, found)} in no class folder: used for training and embedded, without a label")
    if found.count("test"):
        strange = sorted({found.folders[row] for row in test if labels[row] < 0})
        if strange:
            notes.append(f"test images of {listed(strange)} are left out: there are no training images of this class")
        test = [row for row in test if labels[row] >= 0]
        train, test = take_turns(grouped(train, labels)), take_turns(grouped(test, labels))
    else:
        own, files = [labels[row] for row in train], [digests[row] for row in train]
        kept, held = hold_out(own, files, share)
        if odd := lacking([classes[label] for label in own], files, share):
            notes.append(untested(odd, share))
        notes += contradictions(own, files, classes)
        train, test = [train[place] for place in kept], [train[place] for place in held]
    return Arranged(train, test, labels, classes, sorted(loose + unlabelled), tuple(notes))


def not_classes(
    found: Layout, train: Sequence[int], test: Sequence[int], digests: Sequence[str], share: float = HELD_OUT
) -> str | None:
    """The reason why the folders are not used as classes; "" if they are, None if there are no folders to use."""
    folders = [found.folders[row] for row in train]
    loose, sizes = folders.count(""), Counter(name for name in folders if name)
    if not sizes:
        return None
    if loose > FEW * len(folders):
        return f"{loose:,} of {len(folders):,} images lie beside them"
    if len(sizes) < 2:
        return None if not loose else f"there is only {next(iter(sizes))!r}"
    if all(map(looks_like_a_date, sizes)):
        return f"their names are dates, such as {min(sizes)!r}"
    if all(map(looks_like_a_cameras, sizes)):
        return f"their names are what cameras call folders, such as {min(sizes)!r}"
    if test:
        known = {found.folders[row] for row in test} & set(sizes)
        return "" if len(known) > 1 else "the test images are of fewer than two of them"
    inside = [row for row in train if found.folders[row]]
    odd = lacking([found.folders[row] for row in inside], [digests[row] for row in inside], share)
    able = set(sizes) - set(odd)
    few = len(able) < 2 or 2 * sum(sizes[name] for name in able) < len(folders)
    return reasons(odd) if few else ""


def lacking(labels: Sequence[T], digests: Sequence[str], share: float) -> dict[T, str]:
    """The labels without images to test on, each with the reason.

    If a share is held out, a label needs two images without copies. With cross-validation it needs two different
    images. Images that another label has too do not count.
    """
    copies, sizes = Counter(digests), Counter(labels)
    holders = Counter(digest for _, digest in set(zip(labels, digests, strict=True)))
    files: dict[T, set[str]] = {}
    for label, digest in zip(labels, digests, strict=True):
        files.setdefault(label, set()).add(digest)
    found = {}
    for label, own in sorted(files.items(), key=lambda item: str(item[0])):
        if sum(copies[digest] == 1 if share else holders[digest] == 1 for digest in own) > 1:
            continue
        if sizes[label] == 1:
            found[label] = "one image"
        elif len(own) == 1:
            found[label] = "only copies of one image"
        elif all(holders[digest] > 1 for digest in own):
            found[label] = "only images that are in another class as well"
        else:
            found[label] = "fewer than two images that have no copy" + " in another class" * (not share)
    return found


def reasons(odd: Mapping[str, str]) -> str:
    """Such as: 'a', 'b' have one image; 'c' has only copies of one image."""
    groups: dict[str, list[str]] = {}
    for name, why in odd.items():
        groups.setdefault(why, []).append(name)
    return "; ".join(f"{listed(names)} {'has' if len(names) == 1 else 'have'} {why}" for why, names in groups.items())


def untested(odd: Mapping[str, str], share: float) -> str:
    """A note on classes with too few images to test on."""
    return f"{reasons(odd)}: " + ("none of them is held out" if share else "they cannot be recognised by others")


def contradictions(labels: Sequence[int], digests: Sequence[str], classes: Sequence[str]) -> list[str]:
    """A warning if the same image is in several classes."""
    places: dict[str, set[int]] = {}
    for label, digest in zip(labels, digests, strict=True):
        places.setdefault(digest, set()).add(label)
    twice = [sorted(found) for found in places.values() if len(found) > 1]
    if not twice:
        return []
    where = listed([classes[label] for label in twice[0]])
    what = "1 image lies" if len(twice) == 1 else f"{len(twice):,} images lie"
    return [f"warning: {what} in several classes, such as in {where}: no more than one label of each is right"]


def dates(classes: Sequence[str]) -> list[str]:
    """A warning if class names look like dates."""
    found = [name for name in classes if looks_like_a_date(name)]
    if not found:
        return []
    verb = "looks like a date" if len(found) == 1 else "look like dates"
    return [f"warning: {listed(found)} {verb}: use --no-labels if folders are not classes"]


def listed(names: Sequence[str]) -> str:
    """Such as 'a', 'b', 'c' and 5 more."""
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def of(rows: Sequence[int], found: Layout) -> str:
    return "1 image lies" if len(rows) == 1 else f"{len(rows):,} images lie"


def grouped(rows: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """The rows of each class."""
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(labels[row], []).append(row)
    return [members[label] for label in sorted(members)]


def hold_out(labels: Sequence[int], digests: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Split rows into training and test rows.

    This share of each class, at least one image, is held out (none if it is 0): those with the smallest SHA-256, which
    is as good as random and does not depend on names. Images with copies are not held out, since a copy would be
    trained on, and neither is the last image left of a class. Classes alternate, so that the first images of a split
    are of all classes.
    """
    copies = Counter(digests)
    kept, held = [], []
    for rows in grouped(range(len(labels)), labels):
        few = sorted((row for row in rows if copies[digests[row]] == 1), key=lambda row: digests[row])
        out = few[: max(1, round(share * len(rows)))] if share and len(few) > 1 else []
        held.append(sorted(out))
        kept.append(sorted(set(rows) - set(out)))
    return take_turns(kept), take_turns(held)


def enough(count: int, classes: int, share: float) -> int:
    """The number of images, the same for each class, that leaves `count` for training after a share is held out."""
    if not share:
        return count
    each = -(-count // classes)
    return classes * (each + max(1, math.ceil(each * share / (1 - share) - 1e-9)))


def take_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    turns = sorted((turn, group) for group, rows in enumerate(groups) for turn in range(len(rows)))
    return [groups[group][turn] for turn, group in turns]
