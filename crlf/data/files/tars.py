"""WebDataset shards: tar files of images, with the labels in files of the same name that end in .cls.

Each shard is read once from start to end. The cache keeps an index of its images (name, offset, size, SHA-256), so
that later a single image can be read from its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from crlf.data.cache import cache_dir
from crlf.data.files.class_folders import share_of
from crlf.data.files.collection import Collection
from crlf.data.files.decode import PICTURES, PILLOW, image_size
from crlf.data.files.decode_cache import LARGEST, write_whole
from crlf.data.files.listing import File
from crlf.data.files.stores import is_remote, of, reading
from crlf.data.files.tables import by_split, chosen, missing
from crlf.errors import InputError, first_line
from crlf.text import say

SUFFIX, LABEL = ".tar", ".cls"
AT_ONCE = 8  # shards that are read at the same time
AHEAD = 8 << 20  # bytes that are read ahead from a store


@dataclass(frozen=True)
class Member:
    """An image of a shard."""

    name: str
    offset: int
    """The position of its first byte in the shard."""
    size: int
    """Its size in bytes."""
    sha256: str
    pixels: int
    """Width times height; 0 if it is not an image."""
    why: str = ""
    """The reason why it is not an image; empty if it is one."""
    label: str = ""
    """The text of its .cls file; empty if it has none."""


def in_folder(files: Sequence[File]) -> list[File]:
    """The shards among the files of a folder; none if there are also image files."""
    if any(file.name.lower().endswith(PICTURES) for file in files):
        return []
    return [file for file in files if file.name.lower().endswith(SUFFIX)]


def unpacked(files: Sequence[File]) -> list[File]:
    """The files of a folder; if they are shards, the images in the shards, in order."""
    shards = in_folder(files)
    if not shards:
        return list(files)
    found = all_members(shards)
    return [as_file(shard, member, PILLOW) for shard, images in zip(shards, found, strict=True) for member in images]


def all_members(shards: Sequence[File]) -> list[list[Member]]:
    """The images of each shard, see `members`."""
    with warnings.catch_warnings(), ThreadPoolExecutor(AT_ONCE, "shards") as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of slightly malformed files
        return list(pool.map(members, shards))


def members(shard: File) -> list[Member]:
    """The images of a shard in its order, from the cache if the shard was indexed before.

    Raises:
        InputError: the file is not a tar file or is cut short, a store refuses, or the cache cannot be written.
    """
    told = json.dumps([shard.path, shard.size, shard.mtime])
    place = cache_dir() / "shards" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [Member(**values) for values in json.loads(place.read_bytes())]
    found = list(looked_through(shard))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps([asdict(member) for member in found]).encode())
    except OSError as error:
        raise InputError(f"cache {str(place)!r} cannot be written: {error.strerror or error}") from error
    return found


def looked_through(shard: File) -> Iterator[Member]:
    """Read a shard from start to end."""
    labels: dict[str, str] = {}
    found: list[Member] = []
    with opened(shard) as file:
        try:
            for name, offset, size, data in contents(shard, file):
                if name.lower().endswith(LABEL):
                    labels[key_of(name)] = data.decode("utf-8", "replace").strip()
                else:
                    found.append(looked_at(name, offset, size, data))
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"shard {shard.path!r} is damaged or no tar file: {first_line(error)}") from error
    for member in found:
        yield Member(**{**asdict(member), "label": labels.get(key_of(member.name), "")})


@contextlib.contextmanager
def opened(shard: File) -> Iterator[IO[bytes]]:
    if is_remote(shard.path):
        with (
            reading(shard.path),
            of(shard.path).open(shard.path, "rb", block_size=AHEAD, cache_type="readahead") as file,
        ):
            yield file
        return
    try:
        with open(shard.path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"shard {shard.path!r} cannot be read: {error.strerror or error}") from error


def contents(shard: File, file: IO[bytes]) -> Iterator[tuple[str, int, int, bytes]]:
    """The name, offset, size and bytes of each image and label of a shard; no bytes for files over `LARGEST`."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.offset_data + member.size > shard.size:
                raise cut_short(shard, f"{member.name!r} ends at byte {member.offset_data + member.size:,}")
            if member.isfile() and member.name.lower().endswith((*PICTURES, LABEL)):
                file.seek(member.offset_data)
                data = b"" if member.size > LARGEST else file.read(member.size)
                yield member.name, member.offset_data, member.size, data
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
        file.seek(tar.offset)
        if not file.read(tarfile.BLOCKSIZE):
            raise cut_short(shard, "its end is not marked")


def cut_short(shard: File, why: str) -> InputError:
    return InputError(f"shard {shard.path!r} is cut short: {why}, but the file has {shard.size:,} bytes")


def key_of(name: str) -> str:
    """The key that the files of a sample share: the name up to the first dot after the folder."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0]


def looked_at(name: str, offset: int, size: int, data: bytes) -> Member:
    digest, pixels, why = hashlib.sha256(data).hexdigest(), 0, ""
    if size > LARGEST:
        why = f"it is larger than {LARGEST / 1e6:.0f} MB"
    elif not data:
        why = "it is empty"
    else:
        try:
            width, height = image_size(io.BytesIO(data))
            pixels = width * height
        except InputError as error:
            why = str(error)
    return Member(name, offset, size, digest, pixels, why)


def collections(
    where: str, shards: Sequence[File], labelled: bool, hold_out: float, subset: int, max_pixels: int
) -> tuple[Collection, Collection | None]:
    """The training images of shards, and the test images if the names of some shards say so, with their labels.

    Args:
        where: the name of the data, for messages and for the cache.
        labelled: whether .cls files are used.
        hold_out: the share to hold out (crlf.data.files.class_folders.share_of).
        subset: the number of images that will be used; 0 for all.
        max_pixels: images with more are skipped.

    Raises:
        InputError: as `members`, or there are no images.
    """
    named = {Path(file.name): file for file in shards}  # a path may have other separators than the name
    splits = by_split(named, Path())
    train, test = chosen(splits)
    of_split = [[named[path] for path in splits[name]] for name in (train, test) if name]
    parts = [list(zip(part, all_members(part), strict=True)) for part in of_split]
    texts = [[member.label for _, found in part for member in found] for part in parts]
    classes = sorted(set(texts[0]) - {""}, key=lambda text: (len(text), text) if text.isdigit() else (0, text))
    why = "" if len(classes) > 1 or not classes else f"the {LABEL} files are all the same"
    known, notes = labelled and len(classes) > 1, [why] if why else []
    rows = {name: row for row, name in enumerate(classes)}
    labels_of = [[rows.get(one, -1) for one in text] for text in texts]
    if known and test and max(labels_of[1], default=-1) < 0:
        notes.append(f"of split {test!r} no label is known, so it is not used")
        parts, labels_of, test = parts[:1], labels_of[:1], ""
    notes += missing(LABEL, labels_of) if known else []
    share = None if test or not known else share_of(hold_out, min(sum(map(bool, texts[0])), subset or len(texts[0])))
    say(told(where, shards, train, test, classes if known else [], notes))
    made = []
    for part, found_labels in zip(parts, labels_of, strict=True):
        labels = found_labels if known else None
        mark: list[Any] = [where, SUFFIX, [(file.path, file.size, file.mtime) for file, _ in part], known, share]
        files = [as_file(shard, member, max_pixels) for shard, found in part for member in found]
        made.append(of_members(files, mark, labels, classes if known else [], share, why))
    if not made[0].names:
        raise InputError(f"data {where!r} cannot be used: its shards hold no images")
    return made[0], made[1] if test and made[1].names else None


def told(
    where: str, shards: Sequence[File], train: str, test: str, classes: Sequence[str], notes: Sequence[str]
) -> str:
    """A line on how the shards are used."""
    parts = [f"{len(shards):,} tar shards"]
    if classes:
        parts.append(f"labels in their {LABEL} files ({len(classes):,} classes), which pretraining never sees")
    if test:
        parts.append(f"split {train!r} is to train on, {test!r} to test on")
    return f"data {where!r}: {'; '.join([*parts, *notes])}"


def as_file(shard: File, member: Member, max_pixels: int) -> File:
    why = member.why
    if member.pixels > max_pixels:
        why = f"it has {member.pixels:,} pixels, more than {max_pixels:,}"
    name = f"{shard.name}/{member.name}"
    return File(name, shard.path, member.size, shard.mtime, why, None, member.offset, member.sha256)


def of_members(
    files: Sequence[File],
    mark: list[Any],
    labels: list[int] | None,
    classes: Sequence[str],
    share: float | None,
    why: str,
) -> Collection:
    names = [file.name for file in files]
    return Collection(names, lambda a, b: files[a:b], mark, None, labels, list(classes), share, why=why)
