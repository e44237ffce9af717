"""Where fetched data are kept, and how a folder is filled so that nobody sees it half full."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from crlf.data.fetch import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def cache_dir(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the data: `data_dir`, else what CRLF_CACHE names, else ~/.cache/crlf."""
    return Path(os.path.expanduser(data_dir or os.environ.get("CRLF_CACHE") or "~/.cache/crlf"))


@contextlib.contextmanager
def filling(cache: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside the cache, removed at the end; one process at a time where the system has locks.

    Without locks two processes at once both fetch. That costs time but is right: each renames whole, checked files.

    Raises:
        OSError: the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (
        lock(cache),
        tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-", ignore_cleanup_errors=True) as temporary,
    ):
        yield Path(temporary)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder, or wait for the process that does. The system lets go of it if a process dies."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that fills {str(folder)!r}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network disks have no locks
            pass
        yield
    finally:
        os.close(handle)


def keep(arrays: Mapping[str, np.ndarray], folder: Path, temporary: Path) -> None:
    """Save arrays as <name>.npy: written whole to `temporary`, on the same disk, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        with (temporary / f"{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    for name in arrays:
        os.replace(temporary / f"{name}.npy", folder / f"{name}.npy")
