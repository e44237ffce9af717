"""Reads CIFAR's pickled batches safely: a pickle may call any function, so this reader allows almost none.

No name of a pickle is ever looked up. The few that a batch needs stand for small classes below, which only keep what
they are given; numpy sees the parts after they were checked. A batch of 2009 names numpy as Python 2 did; one that was
saved again by numpy 1 or 2 differs in module names and, from pickle protocol 5 on, in how an array is told.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from typing import Any

import numpy as np

from crlf.errors import InputError, first_line

SIDE = 32  # pixels


class DType:
    """A pickled numpy dtype: its name."""

    def __init__(self, name: Any, *flags: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order and the fields, which bytes do not have."""


class Array:
    """A pickled numpy array: its parts."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def numpy(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, DType) or dtype.name not in ("u1", "|u1"):
            raise ValueError(f"an array must be of uint8, not {getattr(dtype, 'name', dtype)}")
        flat = np.frombuffer(latin1(data) if isinstance(data, str) else data, np.uint8)
        return flat.reshape(shape, order="F" if fortran else "C")


def reconstruct(*parts: Any) -> Array:
    """Stands for numpy's `_reconstruct`: an array whose parts follow."""
    return Array()


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Array:
    """Stands for numpy's `_frombuffer`."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, with which Python 3 writes bytes in Python 2's protocol; only for this encoding."""
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    ("_codecs", "encode"): latin1,
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy.core.numeric", "_frombuffer"): from_buffer,
    ("numpy._core.numeric", "_frombuffer"): from_buffer,
}


class Unpickler(pickle.Unpickler):
    """Accepts a dict of lists, strings, numbers and arrays of bytes; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch and is refused")
        return ADMITTED[module, name]


def require_modest_memo(data: bytes) -> None:
    """Raise ValueError for a pickle with memo indices beyond its own length, since a list of that length is made."""
    for opcode, number, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and number > len(data):  # type: ignore[operator]
            raise ValueError(f"it would remember {number:,} things, and has {len(data):,} bytes")


def batch(name: str, data: bytes, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one pickled batch.

    Args:
        name: the file's name, for messages.
        data: the file's bytes: a dict with `data`, uint8 (n, 3072), rows are R then G then B planes, and labels.
        label_key: "labels" in CIFAR-10, "fine_labels" in CIFAR-100.

    Returns:
        images: uint8 (n, 3, 32, 32).
        labels: uint8 (n,).

    Raises:
        InputError: the pickle is damaged, names anything but what a batch needs, or holds something else.
    """
    try:
        require_modest_memo(data)
        told = Unpickler(io.BytesIO(data), encoding="latin1").load()
        images = told["data"].numpy().reshape(-1, 3, SIDE, SIDE)
        labels = np.array(told[label_key], dtype=np.uint8)
    except Exception as error:  # a damaged pickle raises many kinds of exceptions
        raise InputError(f"{name} cannot be read as a batch: {first_line(error)}") from error
    return images, labels


def batches(files: Sequence[tuple[str, bytes]], label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split, from the names and contents of its batches, see `batch`."""
    images, labels = zip(*(batch(name, data, label_key) for name, data in files), strict=True)
    return np.concatenate(images), np.concatenate(labels)
