"""Images of one's own: a folder of files, a list of files, or an array."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from crlf.data import arrays, listing
from crlf.data.cache import cache_dir, lock
from crlf.data.decode import PILLOW, open_image
from crlf.data.decoded import DUPLICATES, SKIPPED, Index, decoded
from crlf.data.fetch import say
from crlf.data.imageset import ImageSet
from crlf.data.listing import File
from crlf.errors import InputError

LIST = ".txt"
SIZES = (32, 64, 96, 128, 224)  # pixels
MEASURED = 500  # files whose size is looked at to choose one of them
FORM = 1  # of what the cache holds; another number makes it anew


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images of one's own are read. The data sets known by name are as they are."""

    image_size: int = 0
    """Pixels a side; 0 takes 32, 64, 96, 128 or 224, the largest that half of the images reach; arrays stay as they
    are."""
    max_skipped: float = 0.1
    """The share of the files that may be no image, or a broken one; more stop the run."""
    max_pixels: int = 100_000_000
    """An image of more is skipped: a small file may hold a picture that fills the memory."""
    follow_links: bool = False
    """Whether symbolic links that lead out of the folder are followed."""

    def __post_init__(self) -> None:
        if self.image_size and not 8 <= self.image_size <= 1024:
            raise InputError(f"image_size must be 0 or in 8..1024, not {self.image_size}")
        if not 0 <= self.max_skipped <= 1:
            raise InputError(f"max_skipped must be in 0..1, not {self.max_skipped}")
        if not 1 <= self.max_pixels <= PILLOW:
            raise InputError(f"max_pixels must be in 1..{PILLOW}, not {self.max_pixels}")


def is_path(data: str) -> bool:
    """Whether this means a path rather than a name: it exists, has a separator, or ends as a list or an array does."""
    separators = [sep for sep in (os.sep, os.altsep) if sep]
    file = Path(data).suffix.lower() in (LIST, *arrays.SUFFIXES)
    return file or any(sep in data for sep in separators) or os.path.exists(os.path.expanduser(data))


def load(path: Path, settings: ImageSettings) -> tuple[ImageSet, ImageSet]:
    """The training and the test images: (train, test), of ids that are the relative paths.

    Without labels all images are for training and the test set is empty. Where the folders are obviously classes
    (crlf.data.classes), they are the labels and a tenth of each class is the test set.

    Args:
        path: a folder, nested or flat; a list (.txt) of paths, one a line; or an array (crlf.data.arrays).
        settings: how they are read.

    Raises:
        InputError: there is nothing at the path, it cannot be read, it holds no image, too many files were skipped, or
            the cache cannot be written.
    """
    if not os.path.exists(path):
        raise InputError(f"data {str(path)!r} does not exist")
    if path.suffix.lower() in arrays.SUFFIXES and not path.is_dir():
        whole = arrays.load(path, settings.image_size)
        return sets(whole, len(whole))
    if path.is_dir():
        files = listing.in_folder(path, settings.follow_links)
    elif path.suffix.lower() == LIST:
        files = listing.in_list(path)
    else:
        raise InputError(f"data {str(path)!r} must be a folder, a list (.txt) or an array (.npy, .npz)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on files that are a little out of order
        side = settings.image_size or typical(files, settings.max_pixels)
    return from_cache(path, files, side, settings)


def from_cache(path: Path, files: Sequence[File], side: int, settings: ImageSettings) -> tuple[ImageSet, ImageSet]:
    """The images in these files, from the cache, which is filled if need be."""
    folder = cache_dir() / "images" / key(path, files, side, settings.max_pixels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            pixels, index = decoded(files, side, settings.max_pixels, folder, by_class=path.is_dir())
    except InputError as error:
        raise InputError(f"data {str(path)!r} cannot be used: {error}") from error
    except OSError as error:
        where = f"cache folder {str(folder)!r} cannot be written: {error.strerror or error}"
        raise InputError(f"{where}; CRLF_CACHE can name another") from error
    if index.skipped > settings.max_skipped * len(files):
        share = f"more than max_skipped {settings.max_skipped:g}"
        why = f"{index.skipped:,} of {len(files):,} files were skipped, {share}: {str(folder / SKIPPED)!r} says why"
        raise InputError(f"data {str(path)!r} cannot be used: {why}")
    tell(path, folder, index, side)
    labels = None if index.labels is None else torch.tensor(index.labels, dtype=torch.int64)
    return sets(ImageSet(torch.from_numpy(pixels), labels, tuple(index.classes), index.ids), index.train)


def sets(whole: ImageSet, train: int) -> tuple[ImageSet, ImageSet]:
    """The first `train` images, and the rest."""
    parts = [slice(0, train), slice(train, None)]
    labels = [None if whole.labels is None else whole.labels[part] for part in parts]
    first, rest = (
        ImageSet(whole.images[part], y, whole.classes, whole.ids[part]) for part, y in zip(parts, labels, strict=True)
    )
    return first, rest


def typical(files: Sequence[File], max_pixels: int) -> int:
    """The size that suits these files: one of `SIZES`, from the median of the shorter sides of some of them."""
    looked_at = [file for file in files if not file.skipped]
    sides = []
    for file in looked_at[:: -(-len(looked_at) // MEASURED) or 1]:
        try:
            with open(file.path, "rb") as opened:
                sides.append(min(open_image(opened, max_pixels).size))
        except (InputError, OSError):  # decoding it will say why
            continue
    median = sorted(sides)[len(sides) // 2] if sides else 0
    return max((size for size in SIZES if size <= median), default=SIZES[0])


def key(path: Path, files: Sequence[File], side: int, max_pixels: int) -> str:
    """The name of a place in the cache: another one as soon as a file's name, size or time of change is another.

    The bytes of the files are not read for it, so that a second run starts at once.
    """
    told = [FORM, os.path.realpath(path), side, max_pixels, [(f.name, f.size, f.mtime, f.skipped) for f in files]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def tell(path: Path, folder: Path, index: Index, side: int) -> None:
    """Say what was found, and what the folders are taken for."""
    count = len(index.ids)
    found = [f"{count:,} images of {side} × {side} pixels"]
    if index.skipped:
        found.append(f"files skipped: {index.skipped:,}, listed in {str(folder / SKIPPED)!r}")
    if index.duplicates:
        found.append(f"copies of other images: {index.duplicates:,}, listed in {str(folder / DUPLICATES)!r}")
    say(f"data {str(path)!r}: {'; '.join(found)}")
    if index.labels is None:
        say("no labels: all images are for training, and no test set is held out")
        return
    held = f"{count - index.train:,} images, about a tenth of each, are held out as the test set"
    say(f"the {len(index.classes):,} folders are taken for classes, to evaluate only; {held}")
