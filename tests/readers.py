"""What reads files from elsewhere, each as a function of bytes: for tests/test_fuzz.py and tests/fuzz_readers.py."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_cifar
import torch
from PIL import Image

import crlf
from crlf.data.datasets import archives, cifar_pickle
from crlf.data.files import shards
from crlf.data.files.decode import decode
from crlf.errors import InputError
from crlf.recipe import RECIPES
from crlf.runs.files import finite
from crlf.runs.run import CHECKPOINT, CLASSES, LOG, RECIPE, SCORES


def refused_or(act: Callable[[], object]) -> object:
    """What it returns, or the one line that it refuses with."""
    try:
        return act()
    except InputError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 1000, line
        return line


def pictures() -> list[bytes]:
    found = []
    gradient = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3) % 251
    for kind, mode in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("WEBP", "RGBA"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(gradient.astype(np.uint8)).convert(mode).save(buffer, kind)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray((gradient[:, :, 0] * 200).astype(np.uint16)).save(buffer, "TIFF", compression="tiff_lzw")
    return [*found, buffer.getvalue()]


def image(data: bytes, folder: Path) -> None:
    made = refused_or(lambda: decode(data, 16, max_pixels=1_000_000))
    assert isinstance(made, str) or (made.shape == (3, 16, 16) and made.dtype == np.uint8)


def cifar_batches() -> list[bytes]:
    return [tiny_cifar.python2_pickle(*pair) for pair in list(tiny_cifar.batches().values())[:2]]


def cifar_batch(data: bytes, folder: Path) -> None:
    made = refused_or(lambda: cifar_pickle.batches([("data_batch_1", data)], label_key="labels"))
    if not isinstance(made, str):
        images, labels = made
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 32, 32) and len(images) == len(labels)


def tarballs() -> list[bytes]:
    found = []
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, data in (("a/b.bin", b"content"), ("../out", b"no")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found.append(buffer.getvalue())
    return found


def archive(data: bytes, folder: Path) -> None:
    path = folder / "fuzzed.tar"
    path.write_bytes(data)
    made = refused_or(lambda: archives.members(path, {"a/b.bin"}, 10_000))
    assert isinstance(made, str) or set(made) <= {"a/b.bin"}
    assert not (folder.parent / "out").exists()


WHOLE = RECIPES["default"].to_dict()


TEXTS = (
    json.dumps(WHOLE).encode(),
    b'{"linear_accuracy": 0.8, "protocol": {"linear": "x"}}\n',
    b'{"step": 1, "loss": NaN}\n' * 3,
)


def texts() -> list[bytes]:
    return [*TEXTS]


def files_of_a_run(data: bytes, folder: Path) -> None:
    run = crlf.Run(folder / "fuzzed run")
    run.path.mkdir(exist_ok=True)
    for name in (RECIPE, SCORES, LOG, CLASSES):
        run.file(name).write_bytes(data)
    for act in (lambda: run.settings, lambda: run.recipe, lambda: run.scores):
        assert isinstance(refused_or(act), str | dict | crlf.Recipe)
    assert all(isinstance(row, dict) for row in run.log())
    assert isinstance(refused_or(lambda: run.classes), str | list)
    refused_or(lambda: finite(run.scores))


def arrays() -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12.0).reshape(3, 4))
    return [buffer.getvalue()]


def array(data: bytes, folder: Path) -> None:
    run = crlf.Run(folder)
    run.file("fuzzed.npy").write_bytes(data)
    assert isinstance(refused_or(lambda: run.array("fuzzed.npy")), str | np.ndarray)


def weights() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(8.0), "step": 3}, buffer)
    return [buffer.getvalue()]


def tensors(data: bytes, folder: Path) -> None:
    run = crlf.Run(folder)
    run.file(CHECKPOINT).write_bytes(data)
    refused_or(lambda: run.tensors(CHECKPOINT))


def tables() -> list[bytes]:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"abc", b"def"], "label": [0, 1]}), buffer)
    return [buffer.getvalue()]


def table(data: bytes, folder: Path) -> None:
    path = folder / "fuzzed.parquet"
    path.write_bytes(data)
    refused_or(lambda: shards.look_at(path))


Read = Callable[[bytes, Path], None]
READERS: dict[str, tuple[Read, Callable[[], list[bytes]]]] = {
    "images": (image, pictures),
    "cifar_batches": (cifar_batch, cifar_batches),
    "archives": (archive, tarballs),
    "files_of_a_run": (files_of_a_run, texts),
    "arrays": (array, arrays),
    "weights": (tensors, weights),
    "tables": (table, tables),
}  # each with whole samples of what it reads
