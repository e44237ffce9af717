"""Tables of images: Parquet and Arrow files, folders of such files as Hugging Face's `datasets` writes them, and CSV
files of paths.

The image column holds the bytes of files, structs {bytes, path}, or paths. The label column, if there is one, is for
evaluation only. Rows are read a few at a time in order, since a table may not fit in memory.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crlf.data.files import columns, shards
from crlf.data.files.class_folders import listed, share_of
from crlf.data.files.collection import Collection
from crlf.data.files.decode import PICTURES
from crlf.data.files.layout import SPLITS
from crlf.data.files.listing import File, look_at
from crlf.data.files.shards import Shard
from crlf.errors import InputError
from crlf.text import say

CHANNELS = (1, 3, 4)


def in_folder(files: Sequence[File]) -> list[Path]:
    """The tables among the files of a folder, in order; none if there are also image files.

    cache-*.arrow files hold intermediate results of `datasets` and are left out. So are CSV files, which may hold
    anything; a CSV file is read only if it is given itself.
    """
    names = [Path(file.name) for file in files]
    if any(name.suffix.lower() in PICTURES for name in names):
        return []
    return [
        Path(file.path)
        for file, name in zip(files, names, strict=True)
        if name.suffix.lower() in shards.BINARY and not name.name.startswith("cache-")
    ]


def by_split(paths: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group shards by the split that their paths below `root` name; without such a name they are "train"."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = re.split(r"[-_. /\\]", os.path.relpath(path, root).lower())
        split = next((name for name, known in SPLITS.items() if set(known) & set(words)), "train")
        found.setdefault(split, []).append(path)
    return found


def collections(
    where: str,
    splits: dict[str, list[Path]],
    image_column: str = "",
    label_column: str | None = "",
    hold_out: float = -1.0,
    subset: int = 0,
) -> tuple[Collection, Collection | None]:
    """The training images of a table with their labels, and the test images if it has a test split.

    Args:
        where: the name of the data, for messages and for the cache.
        splits: the shards of each split, by name. The test split is "test", or else "validation".
        image_column, label_column: the names of the columns; empty to find them by their types, None for no labels.
        hold_out: the share to hold out (crlf.data.files.class_folders.share_of).
        subset: the number of images that will be used; 0 for all.

    Raises:
        InputError: a table cannot be read, or a column is missing, ambiguous, or of another type.
    """
    train, test = chosen(splits)
    opened = [[shards.look_at(path) for path in paths] for paths in (splits[train], splits[test] if test else [])]
    if not any(shard.rows for shard in opened[0]):
        raise InputError(f"data {where!r} cannot be used: it has no rows")
    if not any(shard.rows for shard in opened[1]):
        test, opened = "", opened[:1]
    schema = opened[0][0].schema
    image = columns.image(schema, image_column, where, lambda name: first_value(opened[0], name))
    label, notes = (None, []) if label_column is None else columns.label(schema, label_column, where)
    for shard in (shard for part in opened for shard in part):
        shard.require(schema, [image], columns.holds_files)
        shard.require(schema, [label.name] if label else [], columns.holds_labels)
    labels, classes, why = (None, [], "") if label is None else columns.labels(opened, label, where)
    if label and labels is None:
        notes.append(f"column {label.name!r} is not used: {why}")
    if label and labels:
        if len(labels) > 1 and max(labels[1]) < 0:
            notes.append(f"of split {test!r} no label is known")
            test, opened, labels = "", opened[:1], labels[:1]
        notes += missing(label.name, labels)
    used = label.name if label and labels else ""
    rest = [name for name in schema.names if name not in (image, used) and not any(repr(name) in n for n in notes)]
    if rest:
        kind = "column" if len(rest) == 1 else "columns"
        notes.append(f"{kind} {listed(rest)} not used: neither images nor named as a label")
    say(told(where, image, used, classes, notes, train, test, splits))
    count = sum(value >= 0 for value in labels[0]) if labels else 0
    share = None if test or not labels else share_of(hold_out, min(count, subset) if subset else count)
    made = [of_rows(part, image, where, labels[i] if labels else None, classes, share) for i, part in enumerate(opened)]
    if labels is None:
        unused = "; ".join(note for note in notes if " is not used: " in note)
        made = [replace(part, why=unused) for part in made]
    elif label_column:  # otherwise two label columns with the same classes would share a cache folder
        made = [replace(part, mark=[*part.mark, label_column]) for part in made]
    return made[0], made[1] if test else None


def missing(column: str, labels: Sequence[Sequence[int]]) -> list[str]:
    """Notes on rows without a label, if there are any."""
    parts = [sum(value < 0 for value in split) for split in labels]
    fates = (("to train on", "trained on and embedded, without one"), ("to test on", "left out"))
    return [
        f"{count:,} of {len(split):,} labels in {column!r} {use} are missing: such rows are {fate}"
        for count, split, (use, fate) in zip(parts, labels, fates, strict=False)
        if count
    ]


def chosen(splits: dict[str, list[Path]]) -> tuple[str, str]:
    """The names of the training split and of the test split; "" if there is no test split."""
    train = "train" if "train" in splits else next(iter(splits))
    return train, next((name for name in ("test", "validation") if name in splits and name != train), "")


def told(
    where: str,
    image: str,
    label: str,
    classes: Sequence[str],
    notes: Sequence[str],
    train: str,
    test: str,
    splits: Iterable[str],
) -> str:
    """A line on the columns and splits that are used, and those that are not."""
    parts = [f"images are in column {image!r}"]
    if label:
        parts.append(f"labels in {label!r} ({len(classes):,} classes), which pretraining never sees")
    parts += notes
    if test:
        parts.append(f"split {train!r} is to train on, {test!r} to test on")
    if others := [name for name in splits if name not in (train, test)]:
        parts.append(f"split {listed(others)} is left alone")
    return f"data {where!r}: {'; '.join(parts)}"


def of_rows(
    parts: Sequence[Shard],
    image: str,
    where: str,
    labels: list[int] | None,
    classes: list[str],
    hold_out: float | None,
) -> Collection:
    """The rows of these shards. If the column holds only paths, the files are examined, as those of a list are."""
    mark: list[Any] = [
        where,
        image,
        [shard.mark for shard in parts],
        labels and [classes, False if hold_out is None else hold_out],
    ]
    rows = Rows(parts, image)
    first = next((row for row in rows.read(0, 64) if row.size or row.path), None)
    if first is None or first.data is not None:
        return Collection(rows.names(), rows.read, mark, None, labels, classes, hold_out)
    files = rows.read(0, rows.total)
    mark.append([(file.name, file.size, file.mtime) for file in files])
    names = [file.name for file in files]
    return Collection(names, lambda a, b: files[a:b], mark, None, labels, classes, hold_out)


def first_value(parts: Sequence[Shard], column: str) -> Any:
    """The first value of a column that is not null, among its first 64; None if all are null."""
    values = (value for shard in parts for value in shard.values(column))
    return next((value for value in islice(values, 64) if value is not None), None)


@dataclass
class Rows:
    """The rows of some shards as files. Reading continues cheaply where the last read stopped."""

    shards: Sequence[Shard]
    column: str
    place: int = -1  # the next row of `rest`
    rest: Iterator[File] = field(default_factory=lambda: iter(()))

    @property
    def total(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def names(self) -> list[str]:
        return [f"{shard.name}/{row:05}" for shard in self.shards for row in range(shard.rows)]

    def read(self, start: int, stop: int) -> list[File]:
        if start != self.place:
            self.rest = self.from_row(start)
        self.place = stop
        return list(islice(self.rest, stop - start))

    def from_row(self, start: int) -> Iterator[File]:
        for shard in self.shards:
            if start < shard.rows:
                for row, value in enumerate(shard.values(self.column, start), start):
                    yield as_file(value, f"{shard.name}/{row:05}", shard.path.parent)
            start = max(0, start - shard.rows)


def as_file(value: Any, name: str, folder: Path) -> File:
    """A cell as a file: its bytes, or the file at its path, relative to the folder of the table."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, str):
        data, path = None, data
    if isinstance(data, list | np.ndarray):
        try:
            data = of_list(data)
        except (ValueError, TypeError, OverflowError):  # ragged, or not bytes
            return File(name, "", skipped="its cell holds neither the bytes of a file nor rows of pixels")
    if data is not None:
        return File(name, "", len(data), data=data)
    return look_at(path, os.path.join(folder, path)) if path else File(name, "", skipped="its cell is empty")


def of_list(value: list[Any] | np.ndarray) -> bytes:
    """The bytes in a list; for pixels, (H, W), (H, W, C) or (C, H, W), the bytes of a PNG with them.

    Raises:
        ValueError, TypeError, OverflowError: the list holds neither bytes nor pixels.
    """
    array = np.asarray(value, dtype=np.uint8)
    if array.ndim == 1:
        return array.tobytes()
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)).save(file, "PNG")
    return file.getvalue()
