"""A sequence of files, or of rows of a table, that may be decoded into images. They are read a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from crlf.data.files.class_folders import (
    Arranged,
    arrange,
    contradictions,
    enough,
    grouped,
    hold_out,
    lacking,
    not_classes,
    reasons,
    share_of,
    take_turns,
    untested,
)
from crlf.data.files.layout import UNLABELLED, Layout, layout
from crlf.data.files.listing import File


@dataclass(frozen=True)
class Collection:
    """Files, or rows of a table. Their contents are read when they are decoded."""

    names: Sequence[str]
    read: Callable[[int, int], Sequence[File]]
    """Returns the files of the rows start..stop, without stop."""
    mark: list[Any]
    """Plain values that change if any of the files changes; the name of the cache folder is made from them."""
    layout: Layout | None = None
    """The meaning of the folders of the files."""
    labels: list[int] | None = None
    """The label of each file, an index of `classes`, if a table or a shard holds labels."""
    classes: list[str] = field(default_factory=list)
    hold_out: float | None = None
    """The share of each class to hold out as the test set; None if there are test images, or no labels."""
    folders_label: bool = True
    """Whether folders may be classes."""
    why: str = ""
    """The reason why the labels of a table or of shards are not used."""

    def arranged(self, kept: Sequence[int], digests: Sequence[str]) -> Arranged:
        """Divide the images into training and test images, and order them.

        Args:
            kept: the rows that are images.
            digests: the SHA-256 of the file of each of these.
        """
        everything = list(range(len(kept)))
        if self.layout is not None:
            return arrange(self.layout.of(kept), digests, self.folders_label, self.hold_out or 0.0)
        if self.labels is None:
            return Arranged(everything, [], None, [], why=self.why)
        labels = [self.labels[row] for row in kept]
        known = [row for row in everything if labels[row] >= 0]
        rest = [row for row in everything if labels[row] < 0]
        if self.hold_out is None:
            return Arranged(known, [], labels, self.classes, rest)
        own, files = [labels[row] for row in known], [digests[row] for row in known]
        train, test = ([known[place] for place in part] for part in hold_out(own, files, self.hold_out))
        odd = {self.classes[label]: why for label, why in lacking(own, files, self.hold_out).items()}
        if len(set(own)) - len(odd) < 2:
            return Arranged(everything, [], None, [], why=f"of the classes {reasons(odd)}")
        notes = [*([untested(odd, self.hold_out)] if odd else []), *contradictions(own, files, self.classes)]
        return Arranged(train, test, labels, self.classes, rest, tuple(notes))


def of_files(
    files: Sequence[File],
    where: str,
    found: Layout | None = None,
    labels: bool = True,
    hold_out: float | None = None,
) -> Collection:
    """The files of a folder or a list.

    Args:
        files: the files.
        where: the path of the folder or list, for the cache.
        found: the meaning of the folders; None for a list.
        labels: whether folders may be classes.
        hold_out: the share of each class to hold out as the test set.
    """
    told = [(file.name, file.size, file.mtime, file.skipped) for file in files]
    mark: list[Any] = [where, told] if found is None else [where, told, found.roles, found.folders, labels]
    if hold_out is not None:
        mark.append(hold_out)
    names = [file.name for file in files]
    return Collection(names, lambda a, b: files[a:b], mark, found, hold_out=hold_out, folders_label=labels)


def in_folders(files: Sequence[File], where: str, labels: bool, subset: int, hold_out: float) -> tuple[Collection, int]:
    """The files of a folder that are used, and how many images to decode of them; 0 for all.

    Args:
        files: all files of the folder.
        where: the path of the folder, for the cache.
        labels: whether folders may be classes.
        subset: use at most this many training and as many test images, from the classes in turn; 0 for all.
        hold_out: the share to hold out (crlf.data.files.class_folders.share_of).
    """
    found = layout([file.name for file in files])
    rows = [row for row, role in enumerate(found.roles) if role]
    count = sum(bool(found.folders[row]) and found.pictures[row] for row in rows)
    share = share_of(hold_out, min(count, subset) if subset else count)
    limit = 0
    if 0 < subset < len(rows):
        rows, limit, classes = some(found, rows, labels, subset, share)
        labels = labels and (found.splits or classes)  # as in the whole set
    held = share if labels and count and not found.count("test") else None
    return of_files([files[row] for row in rows], where, found.of(rows), labels, held), limit


def some(found: Layout, rows: Sequence[int], labels: bool, subset: int, share: float) -> tuple[list[int], int, bool]:
    """The files to decode for a subset, how many images to decode of them (0 for all), and whether folders are
    classes."""
    parts = {role: [row for row in rows if found.roles[row] == role] for role in ("train", UNLABELLED, "test")}
    train, test = parts["train"], parts["test"]
    digests = [str(row) for row in range(len(found.roles))]  # copies are not known yet
    pictures = [row for row in train if found.pictures[row]]
    classes = labels and not_classes(found, pictures, test, digests, share) == ""
    if classes:
        loose = [row for row in train if not found.folders[row]]
        places = {name: place for place, name in enumerate(sorted({found.folders[row] for row in train} - {""}))}
        labelled = [places.get(folder, len(places)) for folder in found.folders]
        turns = grouped([row for row in train if found.folders[row]], labelled)
        train, test = [*take_turns(turns), *loose], take_turns(grouped(test, labelled))
        if not found.splits:
            return train, enough(subset, len(places), share), True
    if not found.splits:
        return train, subset, False
    spare = subset + max(1, subset // 10)  # some may be broken
    return [*train[:spare], *parts[UNLABELLED][: max(0, subset - len(train))], *test[:spare]], 0, classes
