"""Files that are whole or not there: a write leaves either the old file or the new one.

It goes to a temporary name in the same folder, is synced, and is then renamed over the old file. A file of tensors is
checked when it is read: torch does not, and takes a weight with a flipped bit for another weight.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from crlf.errors import InputError, first_line


@contextlib.contextmanager
def replacing(path: Path, before: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well, and vanishes otherwise.

    Args:
        before: what was at `path` goes here.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error
        raise


def _sync(folder: Path) -> None:
    """Make renames last through a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes, before: Path | None = None) -> None:
    with replacing(path, before) as file:
        file.write(data)


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds: a dict or a list, as `kind` says.

    Raises:
        InputError: it is missing, damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of a deep nest of brackets
        raise InputError(f"{str(path)!r} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise InputError(f"{str(path)!r} must hold a JSON {expected}, not a {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """JSON, indented; NaN and infinities become null, so that any reader can load it."""
    write_bytes(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def finite(value: Any) -> Any:
    """The same value with None for each NaN or infinite number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def save_rows(path: Path, count: int, parts: Iterable[np.ndarray]) -> None:
    """A `.npy` file of `count` rows, from some of them at a time: arrays (n, ...) that differ in n alone."""
    with replacing(path) as file:
        shape, written = None, 0
        for part in parts:
            if shape is None:
                shape, descr = (count, *part.shape[1:]), np.lib.format.dtype_to_descr(part.dtype)
                head = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, head)
            assert part.shape[1:] == shape[1:], f"rows of {part.shape} in an array of {shape}"
            file.write(np.ascontiguousarray(part).data)
            written += len(part)
        assert written == count, f"{written} rows in an array of {count}"


def save_tensors(path: Path, value: Any, before: Path | None = None) -> None:
    """Save tensors and plain values so that `torch.load(weights_only=True)` reads them."""
    import torch

    buffer = io.BytesIO()  # torch's writer needs a file that seeks; a full disk then fails in one place
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue(), before)


# A file of tensors is a zip file


FOLDER = 0x10  # the attribute of a folder


def check_zip(data: bytes) -> None:
    """Look whether these are the bytes of a zip file of tensors as they were written.

    Each member has a CRC-32, which torch writes and does not check. Of the bits that it does not cover one matters: a
    member that is marked as a folder is not read, and its tensor holds whatever lay in the memory. What torch writes is
    not compressed, and what it reads may be: a small file could fill the memory.

    Raises:
        ValueError, or what `zipfile` raises: they are not.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("it holds more than its size")
        if any(member.external_attr & FOLDER for member in members) or archive.testzip() is not None:
            raise ValueError("its checksum is wrong")
