"""Images of one's own: a folder of files, a list of files, a table of images, or an array."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from crlf.data.cache import cache_dir, lock
from crlf.data.files import arrays, huggingface, listing, shards, tables
from crlf.data.files.class_folders import enough
from crlf.data.files.collection import Collection, in_turns, of_files
from crlf.data.files.decode import PILLOW, open_image
from crlf.data.files.decode_cache import DUPLICATES, SKIPPED, Index, decoded
from crlf.data.files.listing import File
from crlf.data.image_set import ImageSet
from crlf.data.memmap import tensor
from crlf.errors import InputError
from crlf.text import say

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
    image_column: str = ""
    """The column of a table that holds the images; left out, it is found by its type."""
    label_column: str = ""
    """The column of a table that holds the labels, to evaluate only; left out, it is found by its type or name."""

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
    file = Path(data).suffix.lower() in (LIST, *arrays.SUFFIXES, *shards.SUFFIXES)
    return file or any(sep in data for sep in separators) or os.path.exists(os.path.expanduser(data))


def load(data: str, settings: ImageSettings, subset: int = 0) -> tuple[ImageSet, ImageSet]:
    """The training and the test images: (train, test), of ids that are the relative paths, or the rows of a table.

    Without labels all images are for training and the test set is empty. Where the folders are obviously classes
    (crlf.data.files.class_folders), or a table has labels (crlf.data.files.tables), they are the labels, and a tenth of
    each class is the test set, unless the table has a split for it.

    Args:
        data: the path of a folder, nested or flat; of a list (.txt) of paths, one a line; of a table or a folder of
            its shards; of an array (crlf.data.files.arrays); or hf:NAME.
        settings: how they are read.
        subset: at most this many training and as many test images are decoded; 0 for all.

    Raises:
        InputError: there is nothing at the path, it cannot be read, it holds no image, too many files were skipped, or
            the cache cannot be written.
    """
    path = Path(data)
    if data.startswith(huggingface.PREFIX):
        return load_tables(data, huggingface.splits(data), settings, subset)
    if not os.path.exists(path):
        raise InputError(f"data {data!r} does not exist")
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix in shards.SUFFIXES:
        return load_tables(data, {"train": [path]}, settings, subset)
    if suffix not in arrays.SUFFIXES:
        return load_files(path, settings, subset)
    refuse_columns(settings, data)
    whole = arrays.load(path, settings.image_size, subset)
    return sets(whole, len(whole))


def load_files(path: Path, settings: ImageSettings, subset: int) -> tuple[ImageSet, ImageSet]:
    """The images in a folder, or in a list; see `load`."""
    limit, by_folder = subset, path.is_dir()
    if by_folder:
        files = listing.in_folder(path, settings.follow_links)
        if found := tables.in_folder(files):
            return load_tables(str(path), tables.by_split(found, path), settings, subset)
        if 0 < subset < len(files):
            files, classes = in_turns(files)
            by_folder, limit = classes > 0, enough(subset, classes) if classes else subset
    elif path.suffix.lower() == LIST:
        files = listing.in_list(path)
    else:
        rule = "a folder, a list (.txt), a table (.parquet, .arrow) or an array (.npy, .npz)"
        raise InputError(f"data {str(path)!r} must be {rule}")
    refuse_columns(settings, str(path))
    collection = of_files(files, os.path.realpath(path), by_folder)
    side = settings.image_size or typical(files, settings.max_pixels)
    found_here, train = from_cache(str(path), collection, side, settings, limit)
    return cut(sets(found_here, train), subset)


def load_tables(
    where: str, splits: dict[str, list[Path]], settings: ImageSettings, subset: int
) -> tuple[ImageSet, ImageSet]:
    """The images in tables; see `load`."""
    train, test = tables.collections(where, splits, settings.image_column, settings.label_column)
    side = settings.image_size or typical(train.read(0, MEASURED), settings.max_pixels)
    count = len(train.classes) if train.labels and train.hold_out else 0
    limit = enough(subset, count) if subset and count else subset
    whole, rows = from_cache(where, train, side, settings, limit)
    if test is None:
        return cut(sets(whole, rows), subset)
    return cut((whole, from_cache(where, test, side, settings, subset)[0]), subset)


def refuse_columns(settings: ImageSettings, data: str) -> None:
    """Raise InputError when the columns of a table are named, and there is none."""
    for name in ("image_column", "label_column"):
        if getattr(settings, name):
            raise InputError(f"{name} is for tables (.parquet, .arrow, hf:NAME), and {data!r} is none")


def cut(both: tuple[ImageSet, ImageSet], subset: int) -> tuple[ImageSet, ImageSet]:
    return both[0].first(subset), both[1].first(subset)


def from_cache(
    data: str, collection: Collection, side: int, settings: ImageSettings, limit: int
) -> tuple[ImageSet, int]:
    """The images in a collection, from the cache, which is filled if need be; and how many of them are to train on."""
    limit = limit if limit < len(collection.names) else 0
    folder = cache_dir() / "images" / key(collection, side, settings.max_pixels, limit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            pixels, index = decoded(collection, side, settings.max_pixels, folder, limit)
    except InputError as error:
        raise InputError(f"data {data!r} cannot be used: {error}") from error
    except OSError as error:
        where = f"cache folder {str(folder)!r} cannot be written: {error.strerror or error}"
        raise InputError(f"{where}; CRLF_CACHE can name another") from error
    looked_at = len(index.ids) + index.skipped
    if index.skipped > settings.max_skipped * looked_at:
        share = f"more than max_skipped {settings.max_skipped:g}"
        why = f"{index.skipped:,} of {looked_at:,} files were skipped, {share}: {str(folder / SKIPPED)!r} says why"
        raise InputError(f"data {data!r} cannot be used: {why}")
    tell(data, folder, index, side, collection)
    labels = None if index.labels is None else torch.tensor(index.labels, dtype=torch.int64)
    return ImageSet(tensor(pixels), labels, tuple(index.classes), index.ids), index.train


def sets(whole: ImageSet, train: int) -> tuple[ImageSet, ImageSet]:
    """The first `train` images, and the rest."""
    parts = [slice(0, train), slice(train, None)]
    labels = [None if whole.labels is None else whole.labels[part] for part in parts]
    first, rest = (
        replace(whole, images=whole.images[part], labels=y, ids=whole.ids[part])
        for part, y in zip(parts, labels, strict=True)
    )
    return first, rest


def typical(files: Sequence[File], max_pixels: int) -> int:
    """The size that suits these files: one of `SIZES`, from the median of the shorter sides of some of them."""
    looked_at = [file for file in files if not file.skipped]
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on files that are a little out of order
        for file in looked_at[:: -(-len(looked_at) // MEASURED) or 1]:
            with contextlib.suppress(InputError, OSError):  # decoding it will say why
                sides.append(min(size_of(file, max_pixels)))
    median = sorted(sides)[len(sides) // 2] if sides else 0
    return max((size for size in SIZES if size <= median), default=SIZES[0])


def size_of(file: File, max_pixels: int) -> tuple[int, int]:
    """Width and height of an image, in pixels."""
    with open(file.path, "rb") if file.data is None else io.BytesIO(file.data) as opened:
        return open_image(opened, max_pixels).size


def key(collection: Collection, side: int, max_pixels: int, limit: int) -> str:
    """The name of a place in the cache: another one as soon as a file's name, size or time of change is another.

    The bytes of the files are not read for it, so that a second run starts at once.
    """
    where, *rest = collection.mark
    told = [FORM, where, side, max_pixels, *rest] + [limit] * bool(limit)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def tell(data: str, folder: Path, index: Index, side: int, collection: Collection) -> None:
    """Say what was found, and what the folders are taken for."""
    count = len(index.ids)
    found = [f"{count:,} images of {side} × {side} pixels"]
    if index.skipped:
        found.append(f"files skipped: {index.skipped:,}, listed in {str(folder / SKIPPED)!r}")
    if index.duplicates:
        found.append(f"copies of other images: {index.duplicates:,}, listed in {str(folder / DUPLICATES)!r}")
    say(f"data {data!r}: {'; '.join(found)}")
    held = f"{count - index.train:,} images, about a tenth of each, are held out as the test set"
    if index.labels is None and not collection.labels:
        say("no labels: all images are for training, and no test set is held out")
    elif index.labels is None:
        say("too few images of each class to hold some out: all are for training, without labels")
    elif collection.by_folder:
        say(f"the {len(index.classes):,} folders are taken for classes, which pretraining never sees; {held}")
    elif collection.hold_out:
        say(f"of the {len(index.classes):,} classes {held}")
