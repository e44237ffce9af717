"""Streams images part by part, without a cache, so that memory does not grow with their number.

Only the names of the files are all in memory, about half a kilobyte each.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from crlf.data.files import arrays, folder, listing, stores, tables, tars
from crlf.data.files.decode import image_size, square
from crlf.data.files.decode_cache import look_into
from crlf.data.files.folder import ImageSettings
from crlf.data.files.listing import File
from crlf.data.image_set import ImageSet
from crlf.data.memmap import Mapped
from crlf.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # parts decoded while one is embedded


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive images of a source."""

    ids: Sequence[str]
    """The names of its n images."""
    images: torch.Tensor
    """uint8 (n, C, H, W)."""
    split: str | None = None
    labels: np.ndarray | None = None
    """int64 (n,), or None without labels."""
    classes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    """The files that were skipped, each with its reason."""


class Source(Protocol):
    """A known number of images in a fixed order."""

    def __len__(self) -> int: ...

    def parts(self, rows: range, size: int) -> Iterator[Part]:
        """The images of these rows, in parts of `size` images."""


class Files:
    """Image files, resized and cropped as for training.

    Args:
        files: the files in order.
        side: side of the images in pixels.
        max_pixels: images with more pixels are skipped.
        threads: number of decoding threads.
        white: the value of white in files of more than 8 bits; 0 for the largest possible value.
    """

    def __init__(self, files: Sequence[File], side: int, max_pixels: int, threads: int, white: int = 0):
        self.files, self.side, self.max_pixels, self.threads = files, side, max_pixels, threads
        self.white = white

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, rows: range, size: int) -> Iterator[Part]:
        groups = (wanted(self.files[chunk.start : chunk.stop]) for chunk in chunks(rows, size))
        for files, found in ahead(groups, self.look, self.threads):
            yield self.part(files, found)

    def look(self, file: File) -> tuple[np.ndarray | None, str]:
        pixels, outcome = look_into(file, self.side, self.max_pixels, self.white)
        return pixels, outcome.skipped

    def part(self, files: Sequence[File], found: Iterator[tuple[np.ndarray | None, str]]) -> Part:
        ids, images, skipped = [], [], []
        for file, (pixels, why) in zip(files, found, strict=True):
            if pixels is None:
                skipped.append((file.name, why))
            else:
                ids.append(file.name)
                images.append(pixels)
        stacked = np.stack(images) if images else np.empty((0, 3, self.side, self.side), np.uint8)
        return Part(ids, torch.from_numpy(stacked), skipped=skipped)


def wanted(files: Sequence[File]) -> Sequence[File]:
    """The same files; what lies in an object store is already on its way."""
    for file in files:
        if stores.is_remote(file.path) and not file.skipped:
            stores.blocks().want(file)
    return files


class Array:
    """A .npy or .npz file of images (crlf.data.files.arrays), read part by part.

    Args:
        path: the path of the file; an .npz file is read as a whole.
        shape: (3, H, W), the required shape of an image.
        side: resize images to this side; 0 keeps their size.

    Raises:
        InputError: the file cannot be read, or its images have another shape.
    """

    def __init__(self, path: Path, shape: Sequence[int], side: int = 0):
        self.path, self.side = path, side
        self.mapped = Mapped.of(path)
        self.array = arrays.read(path)
        first = arrays.three_channels(self.array[:1], path)  # (1, 3, H, W)
        if not side:
            require_shape(first.shape[1:], shape, f"the images of {str(path)!r}")

    def __len__(self) -> int:
        return len(self.array)

    def parts(self, rows: range, size: int) -> Iterator[Part]:
        for chunk in chunks(rows, size):
            self.mapped.require_unchanged()
            images = arrays.three_channels(self.array[chunk.start : chunk.stop], self.path)
            ids = [f"{self.path.name}/{i:05}" for i in chunk]
            yield Part(ids, torch.from_numpy(scaled(images, self.side) if self.side else images.copy()))


class Sets:
    """The training and test images of any other source."""

    def __init__(self, data: str, train: ImageSet, test: ImageSet, shape: Sequence[int]):
        self.sets = {"train": train} if test is train else {"train": train, "test": test}
        for part in self.sets.values():
            if len(part):
                require_shape(part.images.shape[1:], shape, f"the images of {data!r}")

    def __len__(self) -> int:
        return sum(map(len, self.sets.values()))

    def parts(self, rows: range, size: int) -> Iterator[Part]:
        for chunk in chunks(rows, size):
            first = 0
            for name, part in self.sets.items():
                here = slice(max(chunk.start - first, 0), min(chunk.stop - first, len(part)))
                if here.start < here.stop:
                    labels = None if part.labels is None else part.labels[here].numpy()
                    yield Part(part.ids[here], part.images[here], name, labels, part.classes)
                first += len(part)


def ahead(
    groups: Iterable[Sequence[T]], look: Callable[[T], R], threads: int
) -> Iterator[tuple[Sequence[T], Iterator[R]]]:
    """Yield each group with the results of `look` for its items, in order, while a few further groups are processed.

    Args:
        groups: the groups; each is taken when it is needed.
        look: called in threads; Pillow releases the GIL while it decodes.
        threads: number of threads.
    """
    pool, waiting = ThreadPoolExecutor(threads), deque[tuple[Sequence[T], Iterator[R]]]()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of slightly malformed files
            for group in groups:
                waiting.append((group, pool.map(look, group)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(rows: range, size: int) -> Iterator[range]:
    """Split rows into consecutive chunks of `size` rows."""
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def scaled(images: np.ndarray, side: int) -> np.ndarray:
    """Resize images as files are resized: uint8 (n, 3, h, w) -> (n, 3, side, side)."""
    if images.shape[2:] == (side, side):
        return images
    return np.stack([square(Image.fromarray(image.transpose(1, 2, 0)), side) for image in images])


def require_shape(found: Sequence[int], wanted: Sequence[int], what: str) -> None:
    """Raise InputError unless images have the shape (C, H, W) of the training images."""
    if tuple(found) != tuple(wanted):
        sizes = [f"{h} × {w} pixels with {c} channels" for c, h, w in (wanted, found)]
        raise InputError(f"{what} must have {sizes[0]}, as in training, not {sizes[1]}")


def side_of(shape: Sequence[int], what: str) -> int:
    """The side that files are resized to for images of this shape (C, H, W).

    Raises:
        InputError: the shape is not that of square images with three channels.
    """
    if shape[0] != 3 or shape[1] != shape[2]:
        rule = "can only become square images of 3 channels"
        raise InputError(f"{what} {rule}, but those of the run have {shape[1]} × {shape[2]} pixels and {shape[0]}")
    return shape[1]


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its header."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            image_size(file)
    except (InputError, OSError):
        return False
    return True


def files_at(path: Path, follow_links: bool) -> list[File] | None:
    """The files of a folder, of a list, the images in tar shards, or the one image at a path; None if it is something
    else."""
    if path.is_dir():
        files = listing.in_folder(path, follow_links)
        return None if tables.in_folder(files) else tars.unpacked(files)
    if path.suffix.lower() == tars.SUFFIX and path.is_file():
        return tars.unpacked([listing.look_at(path.name, str(path))])
    if path.suffix.lower() == folder.LIST and path.is_file():
        return listing.in_list(path)
    return [listing.look_at(path.name, str(path))] if path.is_file() and is_image(path) else None


def open_path(data: str, shape: Sequence[int], settings: ImageSettings, threads: int) -> Source | None:
    """Open the images at a path for reading in parts; None if this kind of source cannot be.

    Args:
        data: the path of a folder, a list (.txt), tar shards, an array (.npy, .npz) or one image, or the URL of images
            or shards in an object store.
        shape: (C, H, W) of the training images.
        settings: how the training images were read.
        threads: number of decoding threads.

    Raises:
        InputError: the path cannot be read, or its images do not fit the shape.
    """
    path = Path(os.path.expanduser(data))
    if path.suffix.lower() in arrays.SUFFIXES and path.is_file():
        return Array(path, shape, settings.image_size)
    files = tars.unpacked(stores.listed(data)) if stores.is_remote(data) else files_at(path, settings.follow_links)
    if files is None:
        return None
    side = side_of(shape, f"the files of {data!r}")
    return Files(files, side, settings.max_pixels, threads, settings.white)
