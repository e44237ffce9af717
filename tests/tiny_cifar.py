"""A tiny data set in every form that CIFAR-10 takes, written byte by byte, without the code under test."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from crlf.data.datasets.cifar import CIFAR10
from crlf.data.datasets.official import Arrays, Official

EACH = 3  # images of a batch


def truth() -> Arrays:
    """The arrays that every form below holds."""
    random = np.random.default_rng(5)
    arrays = {}
    for split, batches in CIFAR10.batches.items():
        n = EACH * len(batches)
        arrays[f"{split}_images"] = random.integers(256, size=(n, 3, 32, 32), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(10, size=n, dtype=np.uint8)
    return arrays


def sha256(arrays: Arrays) -> dict[str, str]:
    return {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}


# Nothing listens at port 9 of this machine: the address fails at once.
SPEC: Official = dataclasses.replace(
    CIFAR10, title="Tiny", sha256=sha256(truth()), url="http://127.0.0.1:9/cifar-10-python.tar.gz", package=None
)
WITH_NPM = dataclasses.replace(SPEC, package=CIFAR10.package)


def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images and labels of each official file."""
    arrays, found = truth(), {}
    for split, names in CIFAR10.batches.items():
        for i, name in enumerate(names):
            rows = slice(i * EACH, (i + 1) * EACH)
            found[name] = arrays[f"{split}_images"][rows], arrays[f"{split}_labels"][rows]
    return found


def python2_pickle(images: np.ndarray, labels: np.ndarray, label_key: bytes = b"labels") -> bytes:
    """A batch as Python 2.6 and numpy 1.3 pickled it in 2009: opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = number(len(images)) + number(3072) + b"\x86"
    array += b"(" + number(1) + shape + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    names = b"](" + b"".join(text(b"image_%d.png" % i) for i in range(len(images))) + b"e"
    items = [
        (b"batch_label", text(b"a tiny batch")),
        (label_key, b"](" + b"".join(number(int(label)) for label in labels) + b"e"),
        (b"data", array),
        (b"filenames", names),
    ]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items) + b"u."


def write_batches(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, batch in batches().items():
        (folder / name).write_bytes(python2_pickle(*batch))
    return folder


def tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    """An archive of files, then of members of other kinds."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in others:
            archive.addfile(member)
    return path


def official_files() -> dict[str, bytes]:
    files = {f"{CIFAR10.folder}/{name}": python2_pickle(*batch) for name, batch in batches().items()}
    return {f"{CIFAR10.folder}/readme.html": b"not wanted", **files}


def npm_files() -> dict[str, bytes]:
    files = {"package/package.json": b"{}"}
    for name, (images, _) in batches().items():
        rows = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rows)).save(png, format="PNG")
        files[f"package/{name}.png"] = png.getvalue()
    for split in ("train", "test"):
        files[f"package/{split}_lables.json"] = json.dumps(truth()[f"{split}_labels"].tolist()).encode()
    return files


def write_decoded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for key, array in truth().items():
        np.save(folder / f"{key}.npy", array)
    return folder
