"""Reads members of a tar archive into memory; nothing is unpacked to the disk."""

from __future__ import annotations

import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

from crlf.errors import InputError

LONGEST = 1 << 34  # bytes of an unpacked archive, at most; STL-10 has 2.7 billion
LARGEST = 1 << 28  # bytes of a member, at most, unless a data set needs more; CIFAR-100's largest has 155 million


def members(path: Path, names: Collection[str], largest: int) -> dict[str, bytes]:
    """The contents of the files with these names in a tar archive, compressed or not; missing files are left out.

    Args:
        largest: bytes that one of them may have.

    Raises:
        InputError: the archive is damaged, or any of its members, wanted or not, is a link, a device or has a path
            outside the folder. Says only why.
        OSError: the archive cannot be read.
    """
    found = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                refuse(member)
                if member.offset_data + member.size > LONGEST:
                    raise InputError(f"it has more than {LONGEST:,} bytes")
                name = PurePosixPath(member.name).as_posix()  # without a leading "./"
                if name in names and member.isfile():
                    found[name] = read(archive, member, largest)
    except InputError:
        raise
    except Exception as error:  # a damaged stream raises many kinds of exceptions, OSError among them
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"it cannot be read as a tar archive: {' '.join(str(error).split())}") from error
    return found


def refuse(member: tarfile.TarInfo) -> None:
    """Raise InputError for a member that is not a file, or whose path leads out of the archive's folder."""
    name = member.name.replace("\\", "/")
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise InputError(f"its member {member.name!r} has a path outside the folder")
    if not (member.isfile() or member.isdir()):
        raise InputError(f"its member {member.name!r} is a link or a device")


def read(archive: tarfile.TarFile, member: tarfile.TarInfo, largest: int) -> bytes:
    if member.size > largest:
        raise InputError(f"its member {member.name!r} has {member.size:,} bytes, above {largest:,}")
    file = archive.extractfile(member)
    assert file is not None, "only asked for files"
    data = file.read()
    if len(data) != member.size:
        raise InputError(f"its member {member.name!r} is cut short")
    return data
