"""Tiny data sets in the official forms of CIFAR-100, STL-10 and SVHN, written without the code under test."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
import tiny_cifar

from crlf.data.datasets import cifar, stl10, svhn
from crlf.data.datasets.official import Arrays, Official


class Tiny(NamedTuple):
    """A data set of a few images."""

    spec: Official
    """With the checksums of the files below, at an address where nothing listens."""
    files: dict[str, bytes]
    """The official ones, by name."""
    arrays: Arrays
    """What they hold."""
    load: Callable

    def write_files(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder

    def write_archive(self, path: Path) -> Path:
        """The official archive; for a data set that has none, its files beside each other."""
        if not self.spec.md5:
            return self.write_files(path.parent)
        folder = {f"{self.spec.folder}/{name}": data for name, data in self.files.items()}
        return tiny_cifar.tar(path, {f"{self.spec.folder}/extra.txt": b"not wanted", **folder})


def tiny(spec: Official, load: Callable, encode: Callable[[Arrays, str], dict[str, bytes]]) -> Tiny:
    random, arrays, files = np.random.default_rng(7), {}, {}
    for i, split in enumerate(spec.batches):
        n = 4 + i
        arrays[f"{split}_images"] = random.integers(256, size=(n, *spec.shape), dtype=np.uint8)
        if split != "unlabelled":
            labels = random.integers(len(spec.classes), size=n, dtype=np.uint8)
            labels[:2] = 0, len(spec.classes) - 1
            arrays[f"{split}_labels"] = labels
        files |= encode(arrays, split)
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    url = spec.url.replace(spec.url.split("/")[2], "127.0.0.1:9").replace("https", "http")  # it fails at once
    return Tiny(dataclasses.replace(spec, url=url, files_md5=md5), files, arrays, load)


def encode_cifar100(arrays: Arrays, split: str) -> dict[str, bytes]:
    images, labels = (arrays[f"{split}_{part}"] for part in ("images", "labels"))
    return {split: tiny_cifar.python2_pickle(images, labels, b"fine_labels")}


def encode_stl10(arrays: Arrays, split: str) -> dict[str, bytes]:
    """Byte by byte as its page says: the red values of an image column by column, then green, then blue."""
    images = arrays[f"{split}_images"]
    columns = b"".join(plane[:, x].tobytes() for image in images for plane in image for x in range(96))
    if split == "unlabelled":
        return {"unlabeled_X.bin": columns}
    return {f"{split}_X.bin": columns, f"{split}_y.bin": bytes(int(label) + 1 for label in arrays[f"{split}_labels"])}


def encode_svhn(arrays: Arrays, split: str) -> dict[str, bytes]:
    images, labels = (arrays[f"{split}_{part}"] for part in ("images", "labels"))
    return {f"{split}_32x32.mat": matlab(images, labels)}


def matlab(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Compressed, as the official files are; the digit 0 is told as 10."""
    X = np.zeros((32, 32, 3, len(images)), dtype=np.uint8)
    for i, image in enumerate(images):
        X[:, :, :, i] = np.moveaxis(image, 0, 2)
    y = np.array([[10 if label == 0 else label] for label in labels], dtype=np.uint8)
    file = io.BytesIO()
    scipy.io.savemat(file, {"X": X, "y": y}, do_compression=True)
    return file.getvalue()


TINY = {
    "cifar100": tiny(cifar.CIFAR100, cifar.load, encode_cifar100),
    "stl10": tiny(stl10.STL10, stl10.load, encode_stl10),
    "svhn": tiny(svhn.SVHN, svhn.load, encode_svhn),
}
