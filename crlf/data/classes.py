"""Class folders: labels to evaluate with, and images that are held out for it. Nothing is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

HELD_OUT = 0.1  # share of each class that becomes the test split


def arrange(names: Sequence[str], digests: Sequence[str]) -> tuple[list[int], list[int], list[int], list[str]] | None:
    """Folders as classes, where that is obvious: each image lies in one of two or more, each of two or more images.

    A tenth of each class, at least one, is held out: those with the smallest SHA-256, which is as good as chance and
    does not change with a name. No image that has a copy is held out: the copy would be trained on. The classes take
    turns, so that the first images of a split are of all of them.

    Returns:
        Rows for training, rows for testing, the label of each of `names`, the classes; None where it is not obvious.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes, copies = sorted(set(folders)), Counter(digests)
    places = {name: label for label, name in enumerate(classes)}
    labels = [places[folder] for folder in folders]
    members: list[list[int]] = [[] for _ in classes]
    for row, label in enumerate(labels):
        members[label].append(row)
    alone = [[row for row in rows if copies[digests[row]] == 1] for rows in members]
    if "" in classes or len(classes) < 2 or min(map(len, alone)) < 2:
        return None
    for few in alone:
        few.sort(key=lambda row: digests[row])
    held = [few[: max(1, round(HELD_OUT * len(rows)))] for few, rows in zip(alone, members, strict=True)]
    kept = [sorted(set(rows) - set(out)) for rows, out in zip(members, held, strict=True)]
    return take_turns(kept), take_turns([sorted(rows) for rows in held]), labels, classes


def take_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    turns = sorted((turn, group) for group, rows in enumerate(groups) for turn in range(len(rows)))
    return [groups[group][turn] for turn, group in turns]
