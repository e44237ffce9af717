"""What may be decoded into images: so many things in an order, read a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crlf.data.files.class_folders import arrange, hold_out, take_turns
from crlf.data.files.decode import PICTURES
from crlf.data.files.listing import File


class Arranged(NamedTuple):
    """How decoded images are put in order."""

    train: list[int]
    test: list[int]
    labels: list[int] | None
    """Of each image, before they are put in order."""
    classes: list[str]


@dataclass(frozen=True)
class Collection:
    """Files, or rows of a table. What they hold is read when it is decoded."""

    names: Sequence[str]
    read: Callable[[int, int], Sequence[File]]
    """Those of a range [start, stop)."""
    mark: list[Any]
    """Plain values, others as soon as anything is changed: what the cache knows them by."""
    by_folder: bool = False
    """Whether their folders may be classes (crlf.data.files.class_folders)."""
    labels: list[int] | None = None
    """Of each, where a table holds them; then they go with `classes`."""
    classes: list[str] = field(default_factory=list)
    hold_out: bool = False
    """Whether a tenth of each class is held out as the test set."""

    def arranged(self, kept: Sequence[int], digests: Sequence[str]) -> Arranged:
        """The order of the images in it.

        Args:
            kept: those that gave an image.
            digests: the SHA-256 of each of these.
        """
        everything = list(range(len(kept)))
        if self.by_folder and (found := arrange([self.names[row] for row in kept], digests)):
            return Arranged(*found)
        if self.labels is None:
            return Arranged(everything, [], None, [])
        labels = [self.labels[row] for row in kept]
        if not self.hold_out:
            return Arranged(everything, [], labels, self.classes)
        train, test = hold_out(labels, digests)
        return Arranged(train, test, labels, self.classes) if test else Arranged(everything, [], None, [])


def of_files(files: Sequence[File], where: str, by_folder: bool) -> Collection:
    """The files in a folder or a list; where: its place, for the cache."""
    told = [(file.name, file.size, file.mtime, file.skipped) for file in files]
    return Collection([file.name for file in files], lambda a, b: files[a:b], [where, told], by_folder)


def in_turns(files: Sequence[File]) -> tuple[list[File], int]:
    """The same files with those of the first-level folders in turns, so that the first ones are of every class.

    What lies in no folder, and by its name is no picture, comes last.

    Returns:
        The files, and how many folders take turns; where a picture lies in none, the files as they are, and 0.
    """
    folders: dict[str, list[int]] = {}
    for place, file in enumerate(files):
        folders.setdefault(file.name.partition("/")[0] if "/" in file.name else "", []).append(place)
    loose = folders.pop("", [])
    if len(folders) < 2 or any(files[place].name.lower().endswith(PICTURES) for place in loose):
        return list(files), 0
    return [files[place] for place in [*take_turns(list(folders.values())), *loose]], len(folders)
