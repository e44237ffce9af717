"""Images that stay encoded and are decoded when they are needed.

They keep the contract of `ImageSet`: row i is always image i. Only the place of each image is stored: a file, a member
of a tar file, or an object in a store. Threads decode the images, since Pillow releases the GIL while it decodes and
scales (`python -m bench decode` compares threads with processes).
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from crlf.data.files import stores
from crlf.data.files.decode import decode
from crlf.data.files.listing import File
from crlf.errors import InputError
from crlf.runtime.distributed import local_world
from crlf.text import say

GRAY = 128  # value of every pixel of an image whose file is damaged
TOGETHER = 8  # images that a thread decodes in a row
WINDOW = 1 << 28  # bytes of files that are shuffled together if a store is read in pieces
PIECES = 16  # pieces in a window
PART = 256  # images per part when iterating over all of them


def threads() -> int:
    """The number of decoding threads of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_world())


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images in their files. Indexing with rows decodes these rows: uint8 (n, 3, side, side), on the CPU.

    Args:
        files: the file of each image.
        side: height and width of the decoded images, in pixels.
        max_pixels: an image with more pixels counts as damaged.
        white: the value of white in files of 16 bits or more; 0 for the largest possible value.
        max_skipped: the largest share of images that may be damaged. A damaged image is gray.
    """

    files: Sequence[File]
    side: int
    max_pixels: int
    white: int = 0
    max_skipped: float = 0.1
    total: int = 0
    """The number of images in the set that this is a part of; 0 if it is the whole set."""
    damaged: set[str] = field(default_factory=set)
    """The names of the damaged files found so far; all parts of a set share this set."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 4

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self.files), 3, self.side, self.side))

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return self.shape.numel()

    def __getitem__(self, rows: int | slice | Tensor | np.ndarray | Sequence[int]) -> Tensor:
        """Decode some rows: uint8 (n, 3, side, side), or uint8 (3, side, side) for a single row."""
        if isinstance(rows, int):
            return torch.from_numpy(self.pixels(rows))
        numbers = torch.arange(len(self))[rows]  # (n,)
        if not numbers.ndim:
            return torch.from_numpy(self.pixels(int(numbers)))
        with Decoder(self, threads()) as decoder:
            return decoder.begin(numbers).result()

    def part(self, rows: slice | Sequence[int]) -> Encoded:
        """Some of the images, still encoded."""
        files = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows]
        return replace(self, files=files, total=self.total or len(self))

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, decoded `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __iter__(self) -> Iterator[Tensor]:
        """The images one by one, uint8 (3, side, side)."""
        for part in self.split(PART):
            yield from part

    def pixels(self, row: int) -> np.ndarray:
        """Decode one row: uint8 (3, side, side). It is gray if the file is damaged.

        Raises:
            InputError: the file was changed or cannot be read, or too many files are damaged.
        """
        file = self.files[row]
        try:
            data = stores.read_unchanged(file)
        except OSError as error:
            raise InputError(f"{file.path!r} cannot be read: {error.strerror or error}") from error
        try:
            return decode(data, self.side, self.max_pixels, self.white)
        except InputError as error:
            self.note(row, str(error))
            return np.full((3, self.side, self.side), GRAY, np.uint8)

    def note(self, row: int, why: str) -> None:
        """Count a damaged image, and print a line about the first one.

        Raises:
            InputError: more images are damaged than `max_skipped` allows.
        """
        name, total = self.files[row].name, self.total or len(self)
        with self.lock:
            first = not self.damaged
            self.damaged.add(name)
            count = len(self.damaged)
        if count > self.max_skipped * total:
            told = f"{count:,} of {total:,} images are damaged, more than max_skipped {self.max_skipped:g}"
            raise InputError(f"{told}: the last is {name!r}: {why}")
        if first:
            say(f"image {name!r} is damaged and stays gray: {why}")

    @functools.cached_property
    def pieces(self) -> list[Tensor]:
        """Groups of rows that are adjacent in a tar file of a store, some megabytes each: int64 (n,) each.

        Empty if single images are as quick to read: on a disk, or as separate objects.
        """
        if not self.files or self.files[0].offset < 0 or not stores.is_remote(self.files[0].path):
            return []
        order = sorted(range(len(self)), key=lambda row: (self.files[row].path, self.files[row].offset))
        size = max(1, self.window // PIECES)
        found: list[list[int]] = []
        for row in order:
            if not found or len(found[-1]) == size or self.files[found[-1][0]].path != self.files[row].path:
                found.append([])
            found[-1].append(row)
        return [torch.tensor(rows) for rows in found]

    @functools.cached_property
    def window(self) -> int:
        """The number of images that are shuffled together."""
        mean = sum(file.size for file in self.files) / max(1, len(self))
        return max(PIECES, int(WINDOW / max(mean, 1)))


Pixels = Tensor | Encoded  # uint8 (N, C, H, W), decoded or not; both can be indexed by rows and split


class Batch:
    """Images that threads are decoding."""

    def __init__(self, pixels: Tensor, parts: Sequence[Future[None]]):
        self.pixels, self.parts = pixels, parts

    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def result(self) -> Tensor:
        """Wait for the images: uint8 (n, 3, side, side). Raises InputError as `Encoded.pixels` does."""
        for part in self.parts:
            part.result()
        return self.pixels


class Decoder:
    """Threads that decode images; they end with its `with` block.

    Args:
        images: the images.
        count: the number of threads.
        pin: whether to decode into pinned memory, which a GPU can copy from while it computes.
    """

    def __init__(self, images: Encoded, count: int, pin: bool = False):
        self.images, self.pin = images, pin
        self.threads = ThreadPoolExecutor(count, "decoding")

    def begin(self, rows: Tensor) -> Batch:
        """Start to decode rows, int64 (n,)."""
        pixels = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=self.pin)
        parts = zip(rows.split(TOGETHER), pixels.split(TOGETHER), strict=True)
        return Batch(pixels, [self.threads.submit(self.fill, into.numpy(), part.tolist()) for part, into in parts])

    def fill(self, into: np.ndarray, rows: Sequence[int]) -> None:
        for place, row in zip(into, rows, strict=True):
            place[:] = self.images.pixels(row)

    def __enter__(self) -> Decoder:
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of slightly malformed files
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.quiet.__exit__(None, None, None)
