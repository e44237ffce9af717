"""Reads files in object stores, such as s3://BUCKET/FOLDER, through fsspec, and members of tar files anywhere.

A store is read in blocks, which are kept for a while, so that images that follow each other in a shard are fetched
together.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from crlf.data.files.listing import SYSTEM, File
from crlf.errors import InputError, first_line, require

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}  # by the scheme of a URL
BLOCK = 4 << 20  # bytes; at 50 ms per request, smaller blocks would take longer to request than to read
HELD = 1 << 30  # bytes of blocks that are kept: four windows of crlf.data.encoded
AT_ONCE = 16  # simultaneous requests


def is_remote(data: str) -> bool:
    """Whether this is the URL of an object store."""
    return "://" in data and data.partition("://")[0] in LIBRARIES


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn any exception of a store into an InputError of one line that names the URL."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"data {url!r} does not exist") from error
    except Exception as error:  # each library has its own exceptions for refusals and lost connections
        raise InputError(f"data {url!r} cannot be read: the store says {first_line(error)!r}") from error


@functools.cache
def store(scheme: str) -> Any:
    """The fsspec file system of a scheme. Its library reads keys and addresses from the environment.

    Raises:
        InputError: the library is not installed, or the store refuses the connection.
    """
    require(f"{scheme}://", "stores", "fsspec", LIBRARIES[scheme])
    import fsspec

    with reading(f"{scheme}://"):
        return fsspec.filesystem(scheme)


def of(url: str) -> Any:
    return store(url.partition("://")[0])


def version(info: dict[str, Any]) -> int:
    """A number that changes when the object changes."""
    told = [str(info.get(name)) for name in ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")]
    return int(hashlib.sha256(repr([info.get("size"), *told]).encode()).hexdigest()[:15], 16)


def listed(url: str) -> list[File]:
    """The objects below a URL, sorted by name, or the object at the URL. Names are relative to the URL.

    As in a folder, names that start with a dot and system folders are left out.

    Raises:
        InputError: there are no objects, or the store refuses.
    """
    url = url.rstrip("/")
    scheme = url.partition("://")[0]
    with reading(url):
        place = of(url)
        place.invalidate_cache()
        found = place.find(url, detail=True)
    root = url.partition("://")[2]
    files = []
    for path, info in sorted(found.items()):
        bare = path.lstrip("/")
        name = bare.removeprefix(root).lstrip("/") or bare.rpartition("/")[2]
        if not any(part.startswith(".") or part in SYSTEM for part in name.split("/")):
            files.append(File(name, f"{scheme}://{bare}", int(info["size"] or 0), version(info)))
    if not files:
        raise InputError(f"data {url!r} has no files: it does not exist, or is empty")
    return files


@functools.lru_cache(maxsize=1 << 16)
def require_same(url: str, known: int) -> None:
    """Raise InputError if an object has changed since it was indexed. Each object is checked once per process."""
    with reading(url):
        of(url).invalidate_cache()
        found = list(of(url).find(url, detail=True).values())  # as in `listed`: `info` may return other fields
    if not found:
        raise InputError(f"data {url!r} does not exist")
    if version(found[0]) != known:
        raise InputError(f"{url!r} was changed while its images were in use: start again with it as it is")


class Blocks:
    """Blocks of objects, fetched by threads. The least recently used are dropped if there are too many."""

    def __init__(self, most: int = HELD):
        self.most, self.held = most, 0  # bytes
        self.kept: OrderedDict[tuple[str, int, int], tuple[Future[bytes], int]] = OrderedDict()
        self.lock = threading.Lock()
        self.threads = ThreadPoolExecutor(AT_ONCE, "store")

    def want(self, file: File) -> list[Future[bytes]]:
        """Start to fetch those blocks of a file that are neither here nor requested."""
        parts = [(0, file.size)] if file.offset < 0 else list(in_blocks(file.offset, file.offset + file.size))
        with self.lock:
            found = [self.part(file, start, size) for start, size in parts]
            while self.held > self.most and len(self.kept) > len(parts):
                self.held -= self.kept.popitem(last=False)[1][1]
        return found

    def part(self, file: File, start: int, size: int) -> Future[bytes]:
        """One block of a file. A block that failed before is requested again, since the store may respond by now."""
        key = file.path, file.mtime, start
        if key in self.kept and failed(self.kept[key][0]):
            self.held -= self.kept.pop(key)[1]
        if key not in self.kept:
            stop = start + size if file.offset >= 0 else None
            self.kept[key] = self.threads.submit(fetch, file.path, start, stop, file.mtime), size
            self.held += size
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def cancel(self) -> None:
        """Drop the requests that have not started; otherwise the process would wait for them when it ends."""
        with self.lock:
            for key in [key for key, (block, _) in self.kept.items() if block.cancel()]:
                self.held -= self.kept.pop(key)[1]

    def read(self, file: File) -> bytes:
        """The bytes of a file.

        Raises:
            InputError: the store refuses, or the object has changed.
        """
        start = max(file.offset, 0) % BLOCK
        data = b"".join(part.result() for part in self.want(file))
        data = data if file.offset < 0 else data[start : start + file.size]
        if len(data) != file.size:
            found = f"{len(data):,} of {file.size:,} bytes of {file.name!r}"
            raise InputError(f"{file.path!r} was changed or cut short while its images were in use: it has {found}")
        return data


def failed(block: Future[bytes]) -> bool:
    return block.done() and (block.cancelled() or block.exception() is not None)


def in_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The start and the size of the blocks that hold the bytes from `start` to `stop`."""
    for place in range(start - start % BLOCK, max(stop, 1), BLOCK):
        yield place, BLOCK


def fetch(url: str, start: int, stop: int | None, known: int) -> bytes:
    """The bytes of a range of a shard, fewer at its end, or of a whole object if `stop` is None.

    A whole object is checked by its size alone, since asking for its version would double the requests.
    """
    if stop is None:
        with reading(url):
            return of(url).cat_file(url)
    require_same(url, known)
    with reading(url):
        return of(url).cat_file(url, start=start, end=stop)


@functools.cache
def blocks() -> Blocks:
    """The blocks of this process."""
    return Blocks()


def read_unchanged(file: File) -> bytes:
    """The bytes of a file, of a member of a tar file, or of an object in a store.

    Raises:
        InputError: the file was changed since it was listed, or a store refuses.
        OSError: the file cannot be read.
    """
    if file.data is not None:
        return file.data
    if is_remote(file.path):
        return blocks().read(file)
    with open(file.path, "rb") as opened:
        status = os.fstat(opened.fileno())
        if status.st_mtime_ns != file.mtime or (file.offset < 0 and status.st_size != file.size):
            raise InputError(f"{file.path!r} was changed while its images were in use: start again with it as it is")
        opened.seek(max(file.offset, 0))
        return opened.read(file.size)
