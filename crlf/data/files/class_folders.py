"""Class folders: labels to evaluate with, and images that are held out for it, or none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from crlf.data.files.layout import FEW, UNLABELLED, Layout, looks_like_a_cameras, looks_like_a_date

HELD_OUT = 0.1  # share of each class that becomes the test split, of many images
MANY = 5000  # labelled images; of fewer none is held out, and all are tested by cross-validation
SHOWN = 3  # names in a message

T = TypeVar("T", bound=Hashable)


class Arranged(NamedTuple):
    """How decoded images are put in order."""

    train: list[int]
    test: list[int]
    labels: list[int] | None
    """Of each image, before they are put in order; -1 for those without."""
    classes: list[str]
    unlabelled: list[int] = []  # noqa: RUF012 - nobody writes to it
    """What is trained on as well, and has no label."""
    notes: tuple[str, ...] = ()
    """What to say of it."""
    why: str = ""
    """There are no labels, where there might be."""


def share_of(asked: float, count: int) -> float:
    """The share of so many labelled images that is held out: what is asked for, or if that is below 0 what suits."""
    return asked if asked >= 0 else 0.0 if count < MANY else HELD_OUT


def arrange(found: Layout, digests: Sequence[str], labels: bool = True, share: float = HELD_OUT) -> Arranged:
    """Images by their folders: splits, where they are such, and classes, where that is obvious.

    Folders are classes where there are two or more, nearly all images lie in them, and their names are no dates. A
    class of which no image can be held out, or that the test split does not have, is a class all the same.

    Args:
        found: what the folders say of each image.
        digests: the SHA-256 of each image.
        labels: whether they may be classes.
        share: of each class, is held out where there is no test split.
    """
    parts: dict[str, list[int]] = {"train": [], "test": [], UNLABELLED: []}
    for row, role in enumerate(found.roles):
        parts.setdefault(role, []).append(row)
    train, test, unlabelled = parts["train"], parts["test"], parts[UNLABELLED]
    reason = not_classes(found, train, test, digests, share) if labels else ""
    if not labels or reason is None or reason:
        why = f"the folders are not taken for classes: {reason}" if reason else ""
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
        notes.append(f"{of(loose, found)} in no class folder: trained on and embedded, without a label")
    if found.count("test"):
        strange = sorted({found.folders[row] for row in test if labels[row] < 0})
        if strange:
            notes.append(f"test images of {listed(strange)} are left out: no training image is of that class")
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
    """Why the folders are not taken for classes; "" if they are, None where there is nothing to take."""
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
    """The labels of which no image can be tested, and what is wrong with each.

    Where a share is held out, a label needs two images that have no copy; where none is, two that differ, so that one
    can be told by the other. What another label has as well counts for neither.
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
    """What it means that some classes lack images."""
    return f"{reasons(odd)}: " + ("none of them is held out" if share else "no other image can tell what it is")


def contradictions(labels: Sequence[int], digests: Sequence[str], classes: Sequence[str]) -> list[str]:
    """A warning where the same image lies in two classes."""
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
    """A warning where some names of classes look like dates."""
    found = [name for name in classes if looks_like_a_date(name)]
    if not found:
        return []
    verb = "looks like a date" if len(found) == 1 else "look like dates"
    return [f"warning: {listed(found)} {verb}: --no-labels takes no folder for a class"]


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
    """Rows for training, and rows for testing.

    This share of each class, at least one, is held out, or with 0 none: those with the smallest SHA-256, which is as
    good as chance and does not change with a name. No image that has a copy is held out: the copy would be trained on.
    Nor is the only other one of its class. The classes take turns, so that the first images of a split are of all of
    them.
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
    """How many images, the same number of each class, leave `count` for training when a share is held out."""
    if not share:
        return count
    each = -(-count // classes)
    return classes * (each + max(1, math.ceil(each * share / (1 - share) - 1e-9)))


def take_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    turns = sorted((turn, group) for group, rows in enumerate(groups) for turn in range(len(rows)))
    return [groups[group][turn] for turn, group in turns]
