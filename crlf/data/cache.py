"""The cache of downloaded and decoded data, and how its folders are filled safely."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from crlf.errors import InputError
from crlf.runtime.locks import let_go
from crlf.text import say

DAY = 86_400  # seconds
LOCK = ".lock"


def cache_dir(data_dir: str | Path | None = None) -> Path:
    """The folder of the data: `data_dir`, else CRLF_CACHE, else ~/.cache/crlf.

    Raises:
        InputError: there is no home folder, as in a container whose user has no name and no HOME.
    """
    named = os.fspath(data_dir or os.environ.get("CRLF_CACHE") or "~/.cache/crlf")
    place = os.path.expanduser(named)
    if place == named and named.startswith("~"):
        raise InputError(f"the cache {named!r} needs a home folder, but HOME is not set: set CRLF_CACHE to a folder")
    return Path(place)


@contextlib.contextmanager
def workspace(cache: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside the cache, removed at the end. Leftovers of killed processes are removed after a day.

    Raises:
        OSError: the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f".{name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder, waiting for the process that holds it. The system releases the lock if a process dies."""
    held = FileLock(folder / LOCK)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process, which fills {str(folder)!r}")
            held.acquire()
    except OSError:  # some network disks have no locks; both may fill it then, since each renames whole files
        pass
    try:
        yield
    finally:
        let_go(held)


def keep(arrays: Mapping[str, np.ndarray], folder: Path, temporary: Path, texts: Mapping[str, str]) -> None:
    """Save arrays as <name>.npy, and texts: they are written to `temporary`, on the same disk, then renamed."""
    writers: dict[str, Callable[[IO[bytes]], object]] = {}
    for name, array in arrays.items():
        writers[f"{name}.npy"] = functools.partial(np.save, arr=array, allow_pickle=False)
    for name, text in texts.items():
        writers[name] = functools.partial(write, text=text)
    for name, save in writers.items():
        with (temporary / name).open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
    folder.mkdir(parents=True, exist_ok=True)
    for name in writers:
        os.replace(temporary / name, folder / name)


def write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
