"""PNG files: the chunks that make the picture, and what Pillow does not read of them as it is."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from crlf.data.files.samples import Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, COLOURS, GRAY_ALPHA = 0, 2, 4  # colour types; of the first two one colour may be clear
CLEAR = {bytes([GRAY]): 2, bytes([COLOURS]): 6}  # bytes of the colour that is clear, in two each
PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
USED = (b"tRNS", b"eXIf")  # of the others, where their checksum is right


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The kind, the content and the whole of each chunk; the last may be cut short."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        whole = data[place : place + 12 + size]
        yield kind, whole[8 : 8 + size], whole
        place += 12 + size


def essential(data: bytes) -> bytes:
    """The same picture without what may be damaged and does not matter: texts, colour profiles, times, animations."""
    kept, colour_type = [SIGNATURE], data[25:26]
    for kind, content, whole in chunks(data):
        sound = kind in USED and whole[-4:] == struct.pack(">I", zlib.crc32(whole[4:-4]))
        if kind == b"tRNS":  # of a wrong length it says nothing
            sound &= len(content) == CLEAR[colour_type] if colour_type in CLEAR else len(content) > 0
        if sound or kind in PICTURE:
            kept.append(whole)
        if kind == b"IEND":
            break
    return b"".join(kept)


def deep(head: bytes) -> bool:
    """Whether the first bytes of a file are of a PNG of 16 bits."""
    return head.startswith(SIGNATURE) and head[24:25] == b"\x10"


def clear_colour(data: bytes) -> tuple[int, ...]:
    """The gray or the RGB that is clear, in the file's own depth; nothing where none is, or in another way."""
    kinds = {kind: content for kind, content, _ in chunks(data) if kind in (b"IHDR", b"tRNS")}
    colour_type, content = kinds.get(b"IHDR", b"")[9:10], kinds.get(b"tRNS", b"")
    length = CLEAR.get(colour_type)
    return struct.unpack(f">{length // 2}H", content) if length and len(content) == length else ()


def samples(data: bytes) -> Samples | None:
    """The numbers of a PNG of which Pillow drops some: 16 bits a channel, or a colour that is clear; else None.

    Args:
        data: as `essential` gives it, with a sound IHDR.

    Raises:
        OSError and others of Pillow's: it is damaged.
    """
    depth, colour_type = data[24], data[25]
    clear = clear_colour(data)
    if depth != 16 and not clear:
        return None
    plain = b"".join([SIGNATURE, *(whole for kind, _, whole in chunks(data) if kind != b"tRNS")])
    values = deep_values(plain, colour_type) if depth == 16 else shallow_values(plain)
    alpha, bits = "straight" if colour_type in (4, 6) else "", max(depth, 8)
    if clear:
        key = np.array(clear) * (255 // (2**depth - 1) if depth < 8 else 1)  # as lower depths are stretched
        opacity = np.where((values == key).all(axis=2, keepdims=True), 0, 2**bits - 1)
        values, alpha = np.concatenate([values, opacity.astype(values.dtype)], axis=2), "straight"
    return Samples(values, bits, alpha)


def shallow_values(data: bytes) -> np.ndarray:
    """uint8 (H, W, S) of a PNG of up to 8 bits, gray or RGB."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))


def deep_values(data: bytes, colour_type: int) -> np.ndarray:
    """uint16 (H, W, S) of a PNG of 16 bits.

    Pillow gives the upper 8 bits of several channels. Read as if the lower byte came first it gives the lower ones; and
    gray with opacity takes as many bytes as RGBA of 8 bits, and is read as that.
    """
    if colour_type == GRAY:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.atleast_3d(np.asarray(image).astype(np.uint16))
    if colour_type == GRAY_ALPHA:
        four = read_as(as_rgba(data), "RGBA").astype(np.uint16)  # gray, its lower byte, opacity, its lower byte
        return four[..., 0::2] << 8 | four[..., 1::2]
    mode = "RGB" if colour_type == COLOURS else "RGBA"
    return read_as(data, f"{mode};16B").astype(np.uint16) << 8 | read_as(data, f"{mode};16L")


def read_as(data: bytes, raw: str) -> np.ndarray:
    """uint8 (H, W, S) of a PNG whose bytes lie as Pillow's raw mode says."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        [tile] = image.tile
        image.tile = [tile._replace(args=raw)]
        return np.asarray(image)


def as_rgba(data: bytes) -> bytes:
    """The same bytes under a header that says RGBA of 8 bits."""
    head = data[12:24] + bytes([8, 6]) + data[26:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
