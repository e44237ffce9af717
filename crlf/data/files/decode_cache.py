"""Decodes files once into a folder of the cache; later runs map the pixels from the disk.

While files are decoded, `rows.u8` holds the pixels so far and `rows.jsonl` the outcome of each file, so that a killed
run continues where it was. At the end, the pixels are put in their final order in `images.u8`, and `index.json`, which
is written last, describes the rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from crlf.data.files.collection import Collection
from crlf.data.files.decode import PICTURES, NoImage, decode
from crlf.data.files.listing import File
from crlf.data.files.stores import is_remote, read_unchanged
from crlf.data.memmap import mode
from crlf.errors import InputError

ROWS, TOLD, IMAGES, INDEX = "rows.u8", "rows.jsonl", "images.u8", "index.json"
SKIPPED, DUPLICATES = "skipped.csv", "duplicates.csv"
BATCH = 256  # files between two entries in the record of what is done
LARGEST = 2**29  # bytes; larger files are skipped


@dataclass(frozen=True)
class Outcome:
    """The result of decoding a file."""

    sha256: str = ""
    """The SHA-256 of its bytes; empty if it was skipped."""
    skipped: str = ""
    """The reason why it was skipped; empty if it was not."""
    sidecar: bool = False
    """Whether neither its first bytes nor its name are those of an image."""


@dataclass(frozen=True)
class Index:
    """A description of the rows of the decoded images."""

    ids: list[str]
    """The name of each image."""
    train: int
    """The number of training images; the test images follow them."""
    unlabelled: int
    """How many training images, the last ones, have no label although others have one."""
    labels: list[int] | None
    """The label of each image, -1 if it has none; None if no image has a label."""
    classes: list[str]
    """The name of each label."""
    skipped: int
    """The number of skipped files, without sidecars."""
    sidecars: dict[str, int]
    """The number of sidecars, which are not images by their name and content, for each suffix."""
    duplicates: int
    """The number of images that are copies of an earlier one."""
    notes: list[str]
    """Remarks on the folders, to print."""
    why: str = ""
    """The reason why possible labels are not used."""


def decoded(
    files: Collection, side: int, max_pixels: int, folder: Path, limit: int = 0, white: int = 0
) -> tuple[np.ndarray, Index]:
    """The images in these files, decoded now unless they are in the cache.

    Args:
        files: the files in order.
        side: height and width of the decoded images, in pixels.
        max_pixels: an image with more pixels is skipped.
        folder: the folder of these files in the cache; the caller holds its lock.
        limit: stop after this many images; 0 for all.
        white: the value of white in files of 16 bits or more; 0 for the largest possible value.

    Returns:
        uint8 (N, 3, side, side), mapped from the disk, and the index of its rows.

    Raises:
        InputError: none of the files is an image.
        OSError: the cache cannot be written.
    """
    index = finished(folder, side)
    if index is None:
        outcomes = decode_all(files, side, max_pixels, folder, limit or len(files.names), white)
        index = finish(files, outcomes, side, folder)
    return mapped(folder / IMAGES, side, mode(len(index.ids) * 3 * side * side)), index


def finished(folder: Path, side: int) -> Index | None:
    """The index, or None if the images are not complete."""
    try:
        index = Index(**json.loads((folder / INDEX).read_bytes()))
        whole = (folder / IMAGES).stat().st_size == len(index.ids) * 3 * side * side
    except (OSError, ValueError, TypeError):
        return None
    return index if whole else None


def mapped(path: Path, side: int, how: str) -> np.ndarray:
    return np.memmap(path, np.uint8, how).reshape(-1, 3, side, side)  # type: ignore[call-overload]


# Decoding


def decode_all(
    files: Collection, side: int, max_pixels: int, folder: Path, limit: int, white: int = 0
) -> list[Outcome]:
    """Decode the remaining files, with one thread per core: Pillow releases the GIL while it decodes."""
    outcomes, total = resumed(folder, side), len(files.names)
    count = images(outcomes)

    def one(file: File) -> tuple[np.ndarray | None, Outcome]:
        return look_into(file, side, max_pixels, white)

    with (
        (folder / ROWS).open("ab") as rows,
        (folder / TOLD).open("ab") as told,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="decoding", total=min(limit, total), initial=count, unit="image", disable=None, leave=False) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Pillow warns of slightly malformed files
        while len(outcomes) < total and count < limit:
            start, wanted = len(outcomes), min(BATCH, limit - count)
            found = list(pool.map(one, files.read(start, min(start + wanted, total))))
            rows.write(b"".join(pixels.tobytes() for pixels, _ in found if pixels is not None))
            rows.flush()
            os.fsync(rows.fileno())  # before the record counts them
            told.write("".join(json.dumps(asdict(outcome)) + "\n" for _, outcome in found).encode())
            told.flush()
            outcomes += [outcome for _, outcome in found]
            new = images(outcomes[start:])
            count += new
            bar.update(new)
    return outcomes


def images(outcomes: Sequence[Outcome]) -> int:
    return sum(not outcome.skipped for outcome in outcomes)


def resumed(folder: Path, side: int) -> list[Outcome]:
    """The outcomes that a killed run recorded; its files are cut to these."""
    rows, told = folder / ROWS, folder / TOLD
    try:
        lines = told.read_bytes().split(b"\n")[:-1]  # the last one may be cut short
        outcomes = [Outcome(**json.loads(line)) for line in lines]
        kept = images(outcomes) * 3 * side * side  # bytes
        if rows.stat().st_size >= kept:
            os.truncate(rows, kept)
            os.truncate(told, sum(len(line) + 1 for line in lines))
            return outcomes
    except (OSError, ValueError, TypeError):
        pass
    rows.write_bytes(b"")
    told.write_bytes(b"")
    return []


def look_into(file: File, side: int, max_pixels: int, white: int = 0) -> tuple[np.ndarray | None, Outcome]:
    """Decode a file: its pixels, uint8 (3, side, side), or None if it is skipped, and the outcome.

    Raises:
        InputError: a shard was changed since it was indexed, or a store refuses.
    """
    if file.skipped:
        return None, Outcome(skipped=file.skipped)
    if file.size > LARGEST:
        return None, Outcome(skipped=f"it is larger than {LARGEST / 1e6:.0f} MB")
    try:
        data = bytes_of(file)
    except OSError as error:
        return None, Outcome(skipped=f"it cannot be read: {error.strerror or error}")
    try:
        return decode(data, side, max_pixels, white), Outcome(sha256=hashlib.sha256(data).hexdigest())
    except NoImage as error:
        named = file.data is not None or file.name.lower().endswith(PICTURES)
        return None, Outcome(skipped=str(error), sidecar=not named)
    except InputError as error:
        return None, Outcome(skipped=str(error))


def bytes_of(file: File) -> bytes:
    if file.data is None and (file.offset >= 0 or is_remote(file.path)):
        return read_unchanged(file)
    return Path(file.path).read_bytes() if file.data is None else file.data


# Putting in order


def finish(files: Collection, outcomes: Sequence[Outcome], side: int, folder: Path) -> Index:
    """Write skipped.csv, duplicates.csv, the images in their final order, and the index."""
    index, _, order = arranged(files, outcomes, folder)
    put_in_order(folder, side, order)
    write_whole(folder / INDEX, json.dumps(asdict(index)).encode())
    for name in (ROWS, TOLD):
        (folder / name).unlink(missing_ok=True)
    return index


def arranged(files: Collection, outcomes: Sequence[Outcome], folder: Path) -> tuple[Index, list[int], list[int]]:
    """Write skipped.csv and duplicates.csv; returns the index, the rows of the files that are images, and their order
    in the set."""
    skipped = [(files.names[row], outcome.skipped) for row, outcome in enumerate(outcomes) if outcome.skipped]
    write_table(folder / SKIPPED, ("path", "reason"), skipped)
    kept = [row for row, outcome in enumerate(outcomes) if not outcome.skipped]
    names, digests = [files.names[row] for row in kept], [outcomes[row].sha256 for row in kept]
    if not names:
        name, reason = next(((n, why) for n, why in skipped if n.lower().endswith(PICTURES)), skipped[0])
        raise InputError(f"none of {len(outcomes):,} files is an image; the first is {name!r}: {reason}")
    copies = list(duplicates(names, digests))
    write_table(folder / DUPLICATES, ("path", "same as"), copies)
    found = files.arranged(kept, digests)
    train = [*found.train, *found.unlabelled]
    order = [*train, *found.test]
    labels = None if found.labels is None else [found.labels[row] for row in order]
    sidecars = Counter(suffix_of(files.names[row]) for row, outcome in enumerate(outcomes) if outcome.sidecar)
    index = Index(
        ids=[names[row] for row in order],
        train=len(train),
        unlabelled=len(found.unlabelled),
        labels=labels,
        classes=found.classes,
        skipped=len(skipped) - sidecars.total(),
        sidecars=dict(sidecars.most_common()),
        duplicates=len(copies),
        notes=list(found.notes),
        why=found.why,
    )
    return index, kept, order


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"


def duplicates(names: Sequence[str], digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each image whose file has the same bytes as an earlier file, with the name of the earlier one."""
    first: dict[str, str] = {}
    for name, digest in zip(names, digests, strict=True):
        if first.setdefault(digest, name) != name:
            yield name, first[digest]


def put_in_order(folder: Path, side: int, order: Sequence[int]) -> None:
    """Write the rows in another order, a few at a time, since they may not fit in memory."""
    temporary = folder / f"{IMAGES}.part"
    if list(order) == list(range(len(order))):
        os.replace(folder / ROWS, folder / IMAGES)
        return
    rows = mapped(folder / ROWS, side, "r")
    with temporary.open("wb") as file:
        for start in range(0, len(order), BATCH):
            file.write(rows[np.asarray(order[start : start + BATCH])].tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / IMAGES)


# Tables


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    write_whole(path, csv_text(head, rows).encode("utf-8", "backslashreplace"))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as CSV; cells that a spreadsheet would take for formulas get an apostrophe in front."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(head)
    table.writerows(
        [f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a name of its own, then rename it, since several processes may write the same index."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
