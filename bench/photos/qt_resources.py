"""Qt's binary resources (.rcc): a tree of files in one, as gcompris keeps its pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

ZLIB, FOLDER = 1, 2  # flags of an entry


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name, with slashes, and the bytes of each file in a resource of form 2 or later."""
    data = path.read_bytes()
    magic, form, tree, contents, names = struct.unpack_from(">4s4I", data)
    assert magic == b"qres" and form >= 2, f"{path} is no Qt resource of form 2 or later"

    def name_of(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 :][: 2 * length].decode("utf-16-be")  # after the length, a hash of 4 bytes

    def below(entry: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + 22 * entry)
        here = prefix + name_of(name) if entry else prefix
        if flags & FOLDER:  # of `first` entries from entry `second` on
            for child in range(second, second + first):
                yield from below(child, here + "/" if here else "")
        else:  # country and language, then where the bytes are
            (size,) = struct.unpack_from(">I", data, contents + second)
            held = data[contents + second + 4 :][:size]
            yield here, zlib.decompress(held[4:]) if flags & ZLIB else held

    yield from below(0, "")
