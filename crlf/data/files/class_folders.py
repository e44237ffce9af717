"""Class folders: labels to evaluate with, and images that are held out for it. Nothing is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

HELD_OUT = 0.1  # share of each class that becomes the test split


def arrange(names: Sequence[str], digests: Sequence[str]) -> tuple[list[int], list[int], list[int], list[str]] | None:
    """Folders as classes, where that is obvious: each image lies in one of two or more, each of two or more images.

    Images are held out as `hold_out` says; those that have a copy are not among the two.

    Returns:
        Rows for training, rows for testing, the label of each of `names`, the classes; None where it is not obvious.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes, copies = sorted(set(folders)), Counter(digests)
    alone = Counter(folder for folder, digest in zip(folders, digests, strict=True) if copies[digest] == 1)
    if "" in classes or len(classes) < 2 or min(alone[name] for name in classes) < 2:
        return None
    places = {name: label for label, name in enumerate(classes)}
    labels = [places[folder] for folder in folders]
    return *hold_out(labels, digests), labels, classes


def hold_out(labels: Sequence[int], digests: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows for training, and rows for testing.

    A tenth of each class, at least one, is held out: those with the smallest SHA-256, which is as good as chance and
    does not change with a name. No image that has a copy is held out: the copy would be trained on. Nor is the only
    other one of its class. The classes take turns, so that the first images of a split are of all of them.
    """
    copies = Counter(digests)
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    kept, held = [], []
    for rows in members.values():
        few = sorted((row for row in rows if copies[digests[row]] == 1), key=lambda row: digests[row])
        out = few[: max(1, round(HELD_OUT * len(rows)))] if len(few) > 1 else []
        held.append(sorted(out))
        kept.append(sorted(set(rows) - set(out)))
    return take_turns(kept), take_turns(held)


def enough(count: int, classes: int) -> int:
    """How many images, the same number of each class, leave `count` for training when some are held out."""
    each = -(-count // classes)
    return classes * (each + max(1, -(-each // 9)))


def take_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    turns = sorted((turn, group) for group, rows in enumerate(groups) for turn in range(len(rows)))
    return [groups[group][turn] for turn, group in turns]
