"""Lists the files of a folder or of a list of paths, in a fixed order."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crlf.errors import InputError, first_line

SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir", "__MACOSX")  # system folders


@dataclass(frozen=True)
class File:
    """A file that may be an image, or the reason why it is skipped."""

    name: str
    """The path relative to the folder, with slashes; in a list, the line."""
    path: str
    """Its path or, in an object store, its URL; for a member of a tar file, the path of the tar file."""
    size: int = 0
    """Size in bytes."""
    mtime: int = 0
    """Time of the last change in nanoseconds; in an object store a number that changes with the object."""
    skipped: str = ""
    """The reason why it is skipped; empty if it is not."""
    data: bytes | None = None
    """Its bytes, if they come from a row of a table."""
    offset: int = -1
    """Its position in the tar file at `path`, in bytes; -1 if it is not in a tar file."""
    sha256: str = ""
    """The SHA-256 of its bytes; empty if it is not known yet."""


def in_folder(root: Path, follow_links: bool) -> list[File]:
    """All files below a folder, sorted by name, without those that start with a dot, such as .DS_Store, and without
    system folders, such as lost+found.

    Raises:
        InputError: the folder, or one in it, cannot be read, or it is empty.
    """
    try:
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"data folder {str(root)!r} cannot be read: {error.strerror}") from error
    files = sorted(walk(str(root), "", os.path.realpath(root), follow_links, set()), key=lambda file: file.name)
    if not files:
        raise InputError(f"data folder {str(root)!r} is empty")
    return files


def walk(folder: str, prefix: str, root: str, follow_links: bool, seen: set[str]) -> Iterator[File]:
    """The files below `folder`, with names that start with `prefix`. Folders reached by several links are read once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".") and entry.name not in SYSTEM]
    except OSError as error:
        raise InputError(f"data folder {folder!r} cannot be read: {error.strerror}") from error
    for entry in sorted(entries, key=lambda entry: entry.name):
        name, link = prefix + entry.name, entry.is_symlink()
        outside = link and not inside(entry.path, root)
        if outside and not follow_links:
            yield File(name, entry.path, skipped="a link out of the folder, which --follow-links would follow")
        elif not os.path.isdir(entry.path):
            yield look_at(name, entry.path)
        elif outside or not link:  # links to folders inside add nothing
            yield from walk(entry.path, f"{name}/", root, follow_links, seen)


def inside(path: str, root: str) -> bool:
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(root, ""))


def look_at(name: str, path: str) -> File:
    try:
        found = os.stat(path)
    except OSError as error:
        return File(name, path, skipped=f"it cannot be read: {error.strerror}")
    except ValueError as error:  # the system or the locale does not allow this name
        return File(name, path, skipped=f"its name cannot be used: {first_line(error)}")
    if not stat.S_ISREG(found.st_mode):
        return File(name, path, skipped="it is not a regular file")
    return File(name, path, found.st_size, found.st_mtime_ns)


def in_list(path: Path) -> list[File]:
    """The files in a list, one per line, relative to the folder of the list, in its order. Blank lines are ignored.

    Raises:
        InputError: the list cannot be read, is empty, or names a file that does not exist.
    """
    try:
        whole = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # file names may not be UTF-8
    except OSError as error:
        raise InputError(f"list {str(path)!r} cannot be read: {error.strerror}") from error
    lines = [text for text in re.split(r"\r\n|\n|\r", whole) if text.strip()]
    if not lines:
        raise InputError(f"list {str(path)!r} is empty: it must name one image per line")
    files = [look_at(text, os.path.join(path.parent, text)) for text in lines]
    missing = [file.name for file in files if not os.path.exists(file.path)]
    if missing and any("\udc80" <= letter <= "\udcff" for letter in "".join(missing)):
        raise InputError(f"list {str(path)!r} cannot be read: it is not UTF-8 text")
    if missing:
        count = f"{len(missing):,} of {len(files):,} files" if len(files) > 1 else "a file"
        raise InputError(f"list {str(path)!r} names {count} that do not exist, the first {missing[0]!r}")
    return files
