"""Decides whether files are decoded in advance, into the cache, or when they are needed, and makes the index for that.

The index has the same rows, labels and names as the decoded images, so that a run may use either. To make it, each file
is read once for its header and its SHA-256. A file with a good header and damaged pixels is noticed when it is decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from crlf.data.files.collection import Collection
from crlf.data.files.decode import PICTURES, NoImage, image_size
from crlf.data.files.decode_cache import LARGEST, ROWS, Index, Outcome, arranged, finished, images, write_whole
from crlf.data.files.listing import File
from crlf.data.files.stores import is_remote, read_unchanged
from crlf.errors import InputError
from crlf.text import size

CHOICES = ("auto", "ahead", "stream")
NAME = "stream.json"  # the index, in the folder of the cache
BATCH = 1024  # files
AT_ONCE = 16  # files that are read at the same time; threads mostly wait for the disk or the store


def refuse(decode: str, data: str) -> None:
    """Raise InputError for decode 'stream' with images in a table or an array."""
    if decode == "stream":
        raise InputError(f"decode must be ahead or auto for tables and arrays, not 'stream': {data!r} is one")


def reason(decode: str, collection: Collection, side: int, folder: Path) -> str:
    """The reason why images are decoded when they are needed; "" if they are decoded in advance.

    Args:
        decode: one of `CHOICES`.
        side: height and width of the decoded images, in pixels.
        folder: the folder of these images in the cache.
    """
    if decode != "auto":
        return "as asked" if decode == "stream" else ""
    if finished(folder, side):
        return ""
    first = next(iter(collection.read(0, 1)), None)
    if first is not None and is_remote(first.path):
        return "the files are in an object store"
    need, free = len(collection.names) * 3 * side**2, shutil.disk_usage(folder).free + decoded_bytes(folder)
    return f"decoded they would take {size(need)}, more than half of the {size(free)} free" if 2 * need > free else ""


def decoded_bytes(folder: Path) -> int:
    """Bytes that a stopped run has decoded. They count as free, so that continuing makes the same choice."""
    rows = folder / ROWS
    return rows.stat().st_size if rows.exists() else 0


def indexed(collection: Collection, max_pixels: int, folder: Path, limit: int) -> tuple[list[File], Index]:
    """The files of the images in their final order, and the index of the rows.

    Args:
        max_pixels: images with more pixels are skipped.
        folder: the folder of these images in the cache.
        limit: stop after this many images; 0 for all.

    Raises:
        InputError: no file is an image, a file was changed, or a store refuses.
        OSError: the cache cannot be written.
    """
    files = collection.read(0, len(collection.names))
    with contextlib.suppress(OSError, ValueError, TypeError):
        rows, told = json.loads((folder / NAME).read_bytes())
        return [files[row] for row in rows], Index(**told)
    outcomes = looked_at(files, max_pixels, limit or len(files))
    index, kept, order = arranged(collection, outcomes, folder)
    rows = [kept[row] for row in order]
    write_whole(folder / NAME, json.dumps([rows, asdict(index)]).encode())
    return [files[row] for row in rows], index


def looked_at(files: Sequence[File], max_pixels: int, limit: int) -> list[Outcome]:
    """Read the header of each file until `limit` images are found."""
    outcomes: list[Outcome] = []

    def one(file: File) -> Outcome:
        return look(file, max_pixels)

    with (
        ThreadPoolExecutor(max(AT_ONCE, os.cpu_count() or 1)) as pool,
        tqdm(desc="indexing", total=len(files), unit="file", disable=None, leave=False) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Pillow warns of slightly malformed files
        count = 0
        while len(outcomes) < len(files) and count < limit:
            start, wanted = len(outcomes), min(BATCH, limit - count)
            outcomes += pool.map(one, files[start : start + wanted])
            count += images(outcomes[start:])
            bar.update(len(outcomes) - start)
    return outcomes


def look(file: File, max_pixels: int) -> Outcome:
    if file.skipped:
        return Outcome(skipped=file.skipped)
    if file.sha256:
        return Outcome(sha256=file.sha256)
    if file.size > LARGEST:
        return Outcome(skipped=f"it is larger than {LARGEST / 1e6:.0f} MB")
    try:
        data = read_unchanged(file)
    except OSError as error:
        return Outcome(skipped=f"it cannot be read: {error.strerror or error}")
    try:
        if not data:
            raise NoImage("it is empty")
        image_size(io.BytesIO(data), max_pixels)
    except NoImage as error:
        return Outcome(skipped=str(error), sidecar=not file.name.lower().endswith(PICTURES))
    except InputError as error:
        return Outcome(skipped=str(error))
    return Outcome(sha256=hashlib.sha256(data).hexdigest())
