"""The cache folder: where it is, and how two processes fill it without harm."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from crlf.errors import InputError


def cache_dir() -> Path:
    """`CRLF_CACHE`, or ~/.cache/crlf."""
    return Path(os.environ.get("CRLF_CACHE") or Path.home() / ".cache" / "crlf")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against other processes; one that dies lets go. No lock where there is no flock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cache folder {str(folder)!r} cannot be written: {error.strerror}") from error
    with lock:
        with contextlib.suppress(ImportError):  # Windows: two processes then both fetch, and the renames do no harm
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write each array as NAME.npy: whole under a temporary name, then renamed."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for name, array in arrays.items():
                path = Path(temporary) / f"{name}.npy"
                with path.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            for name in arrays:
                os.replace(Path(temporary) / f"{name}.npy", folder / f"{name}.npy")
    except OSError as error:
        raise InputError(f"cache folder {str(folder)!r} cannot be written: {error.strerror}") from error
