"""Your own images: a folder of files, a list of files, a table of images, or an array."""

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
from typing import NamedTuple

import torch

from crlf.data.cache import cache_dir, lock
from crlf.data.encoded import Encoded
from crlf.data.files import arrays, huggingface, listing, on_demand, shards, stores, tables, tars
from crlf.data.files.class_folders import HELD_OUT, enough
from crlf.data.files.collection import Collection, in_folders, of_files
from crlf.data.files.decode import PILLOW, image_size, peak
from crlf.data.files.decode_cache import DUPLICATES, SKIPPED, Index, bytes_of, decoded, write_whole
from crlf.data.files.listing import File
from crlf.data.files.samples import white_of
from crlf.data.image_set import ImageSet
from crlf.data.memmap import tensor
from crlf.defaults import LARGEST, Unasked, unasked
from crlf.errors import InputError, unknown
from crlf.text import say

LIST = ".txt"
WHITE = "white"  # a file of the cache
SIZES = (32, 64, 96, 128, 224)  # pixels
MEASURED = 500  # files whose size is looked at to choose one of them
BRIGHT = 100  # files whose brightest number is looked at, where they have 16 bits or more
SHALLOW = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp")  # which have not
FORM = 3  # of what the cache holds; another number makes it anew


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How your own images are read. The named data sets ignore these settings."""

    image_size: int = unasked(0)
    """Resize images to this many pixels per side. 0: the largest of 32, 64, 96, 128 and 224 that at least half of the
    images have. By default the same, but at most 64. Arrays keep their size."""
    max_skipped: float = 0.1
    """Stop if more than this share of the files are broken or not images."""
    max_pixels: int = 100_000_000
    """Skip images with more pixels than this, since a small file may hold a picture that fills the memory."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the folder."""
    image_column: str = ""
    """The table column with the images; by default it is found by its type."""
    label_column: str = ""
    """The table column with the labels, used for evaluation only; by default it is found by its type or name."""
    labels: bool = True
    """Use folders or a table column as classes, for evaluation only."""
    white: int = 0
    """The value of white in files of 16 bits or more, such as 4095. 0: full 8, 10, 12, 14 or 16 bits, whichever the
    brightest of a hundred files needs. Files of 8, 10 or 12 bits always use their full range."""
    decode: str = "auto"
    """When files are decoded. ahead: once, into the cache. stream: while they are used, and only an index is written.
    auto: ahead, unless the files are in an object store, or decoded they would take more than half of the free disk of
    the cache."""
    hold_out: float = -1.0
    """The share of each class to hold out for testing, if the data have labels but no test split. 0: hold out none, and
    test every image by cross-validation. -1: 0 for fewer than 5,000 labelled images, else 0.1."""

    def __post_init__(self) -> None:
        if self.image_size and not 8 <= self.image_size <= 1024:
            raise InputError(f"image_size must be 0 or in 8..1024, not {self.image_size}")
        if not 0 <= self.max_skipped <= 1:
            raise InputError(f"max_skipped must be in 0..1, not {self.max_skipped}")
        if not 1 <= self.max_pixels <= PILLOW:
            raise InputError(f"max_pixels must be in 1..{PILLOW}, not {self.max_pixels}")
        if self.decode not in on_demand.CHOICES:
            raise unknown("decode", self.decode, on_demand.CHOICES)
        if not 0 <= self.white < 2**64:
            raise InputError(f"white must be 0 or more, not {self.white}")
        if not (self.hold_out == -1 or 0 <= self.hold_out <= 0.5):
            raise InputError(f"hold_out must be in 0..0.5, or -1 for what suits the data, not {self.hold_out}")


def is_path(data: str) -> bool:
    """Whether this is a path, not a name: it exists, has a separator, or has the suffix of a list or an array."""
    separators = [sep for sep in (os.sep, os.altsep) if sep]
    file = Path(data).suffix.lower() in (LIST, tars.SUFFIX, *arrays.SUFFIXES, *shards.SUFFIXES)
    return file or any(sep in data for sep in separators) or os.path.exists(os.path.expanduser(data))


class Loaded(NamedTuple):
    """The images of a source."""

    train: ImageSet
    """The training images, with labels if there are any."""
    test: ImageSet
    """The test images; the training images themselves if they are tested by cross-validation."""
    learn: ImageSet
    """The images to learn from: the training images and the unlabelled ones beside them."""


def load(data: str, settings: ImageSettings, subset: int = 0) -> Loaded:
    """Load the images of a source. Their ids are relative paths or table rows.

    Folders named after splits (crlf.data.files.layout), or the splits of a table, give the training and test images.
    Otherwise, if folders are clearly classes (crlf.data.files.class_folders) or a table has labels
    (crlf.data.files.tables), the share `ImageSettings.hold_out` of each class is the test set; if that is 0, the test
    set is the training set. Without labels the test set is empty.

    Args:
        data: the path of a folder, nested or flat; of a list (.txt) with one path per line; of a table or a folder of
            its shards; of a WebDataset shard (.tar) or a folder of these; of an array (crlf.data.files.arrays); the URL
            of a folder or shard in an object store (crlf.data.files.stores); or hf:NAME.
        settings: how the images are read.
        subset: decode at most this many training and as many test images; 0 for all.

    Raises:
        InputError: the path does not exist, cannot be read or holds no images, too many files were skipped, or the
            cache cannot be written.
    """
    path = Path(data)
    if data.startswith(huggingface.PREFIX):
        return load_tables(data, huggingface.splits(data), settings, subset)
    if stores.is_remote(data):
        refuse_columns(settings, data)
        return load_listed(data, stores.listed(data), data, settings, subset)
    if not os.path.exists(path):
        raise InputError(f"data {data!r} does not exist")
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix in shards.SUFFIXES:
        return load_tables(data, {"train": [path]}, settings, subset)
    if suffix not in arrays.SUFFIXES:
        return load_files(path, settings, subset)
    refuse_columns(settings, data)
    on_demand.refuse(settings.decode, data)
    return Loaded(*arrays.load(path, settings.image_size, subset, settings.labels, settings.hold_out))


def load_files(path: Path, settings: ImageSettings, subset: int) -> Loaded:
    """The images in a folder, in a list or in a tar file; see `load`."""
    where = os.path.realpath(path)
    if path.is_dir():
        everything = listing.in_folder(path, settings.follow_links)
        if found := tables.in_folder(everything):
            return load_tables(str(path), tables.by_split(found, path), settings, subset)
        refuse_columns(settings, str(path))
        return load_listed(str(path), everything, where, settings, subset)
    refuse_columns(settings, str(path))
    if path.suffix.lower() == tars.SUFFIX:
        return load_listed(str(path), [listing.look_at(path.name, str(path))], where, settings, subset)
    if path.suffix.lower() == LIST:
        return load_collection(str(path), of_files(listing.in_list(path), where), settings, subset, subset)
    rule = "a folder, a list (.txt), a table (.parquet, .arrow, .csv), shards (.tar) or an array (.npy, .npz)"
    raise InputError(f"data {str(path)!r} must be {rule}")


def load_listed(data: str, files: Sequence[File], where: str, settings: ImageSettings, subset: int) -> Loaded:
    """The images among the files of a folder, or in its shards; where: its place, for the cache."""
    if found := tars.in_folder(files):
        asked = settings.labels, settings.hold_out, subset, settings.max_pixels
        return load_splits(data, *tars.collections(where, found, *asked), settings, subset)
    if tables.in_folder(files):
        raise InputError(f"data {data!r} holds tables, which are read from a disk alone: copy them to one")
    collection, limit = in_folders(files, where, settings.labels, subset, settings.hold_out)
    return load_collection(data, collection, settings, subset, limit)


def load_collection(data: str, collection: Collection, settings: ImageSettings, subset: int, limit: int) -> Loaded:
    files = collection.read(0, len(collection.names))
    side, reach = side_of(files, settings)
    white = settings.white or brightest(data, collection, files, settings.max_pixels)
    return cut(parts(*from_cache(data, collection, side, settings, limit, white)), subset, reach)


def load_tables(where: str, splits: dict[str, list[Path]], settings: ImageSettings, subset: int) -> Loaded:
    """The images in tables; see `load`."""
    label_column = settings.label_column if settings.labels else None
    on_demand.refuse(settings.decode, where)
    settings = replace(settings, decode="ahead")
    asked = settings.image_column, label_column, settings.hold_out, subset
    return load_splits(where, *tables.collections(where, splits, *asked), settings, subset)


def load_splits(where: str, train: Collection, test: Collection | None, settings: ImageSettings, subset: int) -> Loaded:
    """The images of a collection, and those of its test split if it has one; see `load`."""
    first = train.read(0, MEASURED)
    side, reach = side_of(first, settings)
    white = settings.white or brightest(where, train, first, settings.max_pixels)
    count = len(train.classes) if train.labels and train.hold_out else 0
    limit = enough(subset, count, train.hold_out or 0.0) if subset and count else subset
    found = parts(*from_cache(where, train, side, settings, limit, white))
    if test is not None:
        held = parts(*from_cache(where, test, side, settings, subset, white)).train
        found = Loaded(found.train, held, found.learn)
    return cut(found, subset, reach)


def refuse_columns(settings: ImageSettings, data: str) -> None:
    """Raise InputError if table columns are named but the data are not a table."""
    for name in ("image_column", "label_column"):
        if getattr(settings, name):
            raise InputError(f"{name} is for tables (.parquet, .arrow, .csv, hf:NAME), but {data!r} is not a table")


def cut(found: Loaded, subset: int, reach: int) -> Loaded:
    train, learn = found.train.first(subset), replace(found.learn.first(subset), reach=reach)
    return Loaded(train, train if found.test is found.train else found.test.first(subset), learn)


def from_cache(
    data: str, collection: Collection, side: int, settings: ImageSettings, limit: int, white: int
) -> tuple[ImageSet, Index]:
    """The images of a collection from the cache, which is filled if needed, and the index of their rows."""
    limit = limit if limit < len(collection.names) else 0
    folder = cache_dir() / "images" / key(collection, side, settings.max_pixels, limit, white)
    images: torch.Tensor | Encoded
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            if why := on_demand.reason(settings.decode, collection, side, folder):
                files, index = on_demand.indexed(collection, settings.max_pixels, folder, limit)
                images = Encoded(files, side, settings.max_pixels, white, settings.max_skipped)
            else:
                pixels, index = decoded(collection, side, settings.max_pixels, folder, limit, white)
                images = tensor(pixels)
    except InputError as error:
        raise InputError(f"data {data!r} cannot be used: {error}") from error
    except OSError as error:
        where = f"cache folder {str(folder)!r} cannot be written: {error.strerror or error}"
        raise InputError(f"{where}; set CRLF_CACHE to another folder") from error
    looked_at = len(index.ids) + index.skipped
    if index.skipped > settings.max_skipped * looked_at:
        share = f"more than max_skipped {settings.max_skipped:g}"
        why = f"{index.skipped:,} of {looked_at:,} files were skipped, {share}: see {str(folder / SKIPPED)!r}"
        raise InputError(f"data {data!r} cannot be used: {why}")
    tell(data, folder, index, side, collection)
    if why:
        say(f"images are decoded while they are used, not ahead (--decode): {why}")
    held = -1.0 if index.labels is None or collection.hold_out is None else collection.hold_out
    return ImageSet(images, None, (), index.ids, white=white, hold_out=held, why=index.why), index


def parts(whole: ImageSet, index: Index) -> Loaded:
    """Split a set into training and test images by its index."""
    labelled = index.train - index.unlabelled
    train, test = (part_of(whole, index, part) for part in (slice(0, labelled), slice(index.train, None)))
    if index.labels is not None and not len(test):
        test = train
    if not index.unlabelled:
        return Loaded(train, test, train)
    return Loaded(train, test, whole.rows(slice(0, index.train)))


def part_of(whole: ImageSet, index: Index, rows: slice) -> ImageSet:
    labels = None if index.labels is None else torch.tensor(index.labels[rows], dtype=torch.int64)
    return replace(whole.rows(rows), labels=labels, classes=tuple(index.classes))


def brightest(data: str, collection: Collection, files: Sequence[File], max_pixels: int) -> int:
    """The value of white in those of the files with 16 bits or more; 0 if there are none.

    It is determined once and kept in the cache.
    """
    folder = cache_dir() / "images" / key(collection, 0, max_pixels, 0, 0)
    with contextlib.suppress(OSError, ValueError):
        return told_white(data, int((folder / WHITE).read_text(encoding="ascii")))
    looked_at = [file for file in files if not file.skipped and not file.name.lower().endswith(SHALLOW)]
    highest = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of slightly malformed files
        for file in looked_at[:: -(-len(looked_at) // BRIGHT) or 1]:
            with contextlib.suppress(OSError):  # decoding reports the reason
                highest = max(highest, peak(bytes_of(file), max_pixels))
    found = white_of(highest) if highest else 0
    with contextlib.suppress(OSError):  # reported later, when the images are written
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WHITE, str(found).encode())
    return told_white(data, found)


def told_white(data: str, white: int) -> int:
    """Return the value of white, and print it if it is not the usual one."""
    if white and white != 65535:
        bits = white.bit_length()
        why = f"the brightest value found needs {bits} of 16 bits"
        say(f"data {data!r}: {why}, so white is {white} (--white sets another value)")
    return white


def side_of(files: Sequence[File], settings: ImageSettings) -> tuple[int, int]:
    """The side in pixels at which files are read, and their `typical` size, or 0 if a size is given."""
    if settings.image_size:
        return settings.image_size, 0
    reach = typical(files, settings.max_pixels)
    return (min(reach, LARGEST) if isinstance(settings.image_size, Unasked) else reach), reach


def typical(files: Sequence[File], max_pixels: int) -> int:
    """One of `SIZES` that suits these files, from the median of the shorter sides of a sample."""
    looked_at = [file for file in files if not file.skipped]
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of slightly malformed files
        for file in looked_at[:: -(-len(looked_at) // MEASURED) or 1]:
            with contextlib.suppress(InputError, OSError):  # decoding it will say why
                sides.append(min(size_of(file, max_pixels)))
    median = sorted(sides)[len(sides) // 2] if sides else 0
    return max((size for size in SIZES if size <= median), default=SIZES[0])


def size_of(file: File, max_pixels: int) -> tuple[int, int]:
    """Width and height of an image, in pixels."""
    own = file.data is None and file.offset < 0 and not stores.is_remote(file.path)
    with open(file.path, "rb") if own else io.BytesIO(bytes_of(file)) as opened:
        return image_size(opened, max_pixels)


def key(collection: Collection, side: int, max_pixels: int, limit: int, white: int) -> str:
    """The name of the cache folder, which changes if the name, size or modification time of a file changes.

    It does not read the files, so a second run starts at once.
    """
    where, *rest = collection.mark
    told = [FORM, where, side, max_pixels, white, *rest] + [limit] * bool(limit)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def tell(data: str, folder: Path, index: Index, side: int, collection: Collection) -> None:
    """Print what was found, and how the folders are used."""
    count, listed = len(index.ids), str(folder / SKIPPED)
    found = [f"{count:,} images of {side} × {side} pixels"]
    if index.skipped:
        found.append(f"files skipped: {index.skipped:,}, listed in {listed!r}")
    if index.sidecars:
        kinds = ", ".join(f"{number:,} × {suffix}" for suffix, number in index.sidecars.items())
        found.append(f"other files: {kinds}")
    if index.duplicates:
        found.append(f"copies of other images: {index.duplicates:,}, listed in {str(folder / DUPLICATES)!r}")
    say(f"data {data!r}: {'; '.join(found)}")
    for note in index.notes:
        say(note)
    splits = collection.layout is not None and collection.layout.splits
    held = "no images are held out"
    if count > index.train and collection.hold_out:
        share = "a tenth" if collection.hold_out == HELD_OUT else f"{100 * collection.hold_out:g} %"
        held = f"{count - index.train:,} images, about {share} of each class, are held out as the test set"
    if index.labels is None and not collection.labels:
        say("no labels" if splits else "no labels: all images are used for training, without a test set")
    elif index.labels is None:
        say(f"too few images per class to test on ({index.why}): all are used for training, without labels")
    elif collection.layout is not None:
        rest = held if collection.hold_out is not None else f"{count - index.train:,} images are for testing"
        say(f"the {len(index.classes):,} folders are used as classes, which pretraining never sees; {rest}")
    elif collection.hold_out is not None:
        say(f"of the {len(index.classes):,} classes {held}")
