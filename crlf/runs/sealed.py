"""A checksum inside a zip file, such as torch writes: SHA-256, as the zip's comment. Whatever reads zips still does.

torch checks none itself: of a weight with a flipped bit it notices nothing.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile

END = b"PK\x05\x06"  # the zip format's end of central directory: 22 bytes and a comment, whose length is its last two
SIZE = 22
DIGEST = 64  # hexadecimal digits


def seal(data: bytes) -> bytes:
    """The bytes of a zip file without a comment -> the same file with its checksum."""
    assert data[-SIZE:].startswith(END), "no zip file, or one with a comment"
    return data[:-2] + struct.pack("<H", DIGEST) + hashlib.sha256(data).hexdigest().encode()


def intact(data: bytes) -> bool:
    """Whether these are the bytes of a sealed file as it was written, or of one that was never sealed."""
    if data[-SIZE:].startswith(END) and data.endswith(b"\0\0"):
        return True
    plain, digest = data[: -DIGEST - 2] + b"\0\0", data[-DIGEST:]
    written = plain[-SIZE:].startswith(END) and data[:-DIGEST].endswith(struct.pack("<H", DIGEST))
    return written and hashlib.sha256(plain).hexdigest().encode() == digest


def inflates(data: bytes) -> bool:
    """Whether these are the bytes of a zip file that would grow when it is read. What torch writes is not compressed,
    and what it reads may be: a small file could fill the memory."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return sum(info.file_size for info in archive.infolist()) > len(data)
