"""Atomic writes: after a crash, a file is either the old one or the new one, and complete.

A file is written under a temporary name in the same folder, synced and renamed over the old one. Files of tensors are
checked when they are read, since torch does not notice a flipped bit in a weight.
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
    """A file to write to, which replaces `path` when the block ends without an error and is removed otherwise.

    Args:
        path: the file to replace.
        before: where to keep the old file.

    Raises:
        InputError: the file cannot be written.
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
    """Make renames survive a loss of power, if the system supports it."""
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
    """Read a JSON file that holds a dict or a list, as given by `kind`.

    Raises:
        InputError: it is missing, damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: deeply nested brackets
        raise InputError(f"{str(path)!r} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise InputError(f"{str(path)!r} must hold a JSON {expected}, not a {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinities become null, so that any reader can load it."""
    write_bytes(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def finite(value: Any) -> Any:
    """Replace each NaN or infinite number by None."""
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
    """Write a `.npy` file of `count` rows from arrays (n, ...) that differ only in n."""
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

    buffer = io.BytesIO()  # torch needs a seekable file; with a buffer, a full disk fails only in write_bytes
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue(), before)


# A file of tensors is a zip file


FOLDER = 0x10  # zip attribute of a folder


def check_zip(data: bytes) -> None:
    """Check the bytes of a zip file of tensors.

    Each member has a CRC-32, which torch writes but does not check. One bit outside of it matters: torch does not read
    a member marked as a folder, and its tensor then has arbitrary contents. torch writes uncompressed members but also
    reads compressed ones, so a small file could fill the memory.

    Raises:
        ValueError, or an error of `zipfile`: the file is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("its contents are larger than the file")
        if any(member.external_attr & FOLDER for member in members) or archive.testzip() is not None:
            raise ValueError("its checksum is wrong")
