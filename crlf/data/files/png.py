"""Reads PNG files: without damaged extra chunks, and with the bits and the transparent colour that Pillow drops."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from crlf.data.files.samples import Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, COLOURS, GRAY_ALPHA = 0, 2, 4  # colour types; the first two may have one transparent colour
CLEAR = {bytes([GRAY]): 2, bytes([COLOURS]): 6}  # bytes of the transparent colour, two per channel
PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
USED = (b"tRNS", b"eXIf")  # other chunks that are kept if their checksum is right


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The type, the content and the whole bytes of each chunk; the last may be cut short."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        whole = data[place : place + 12 + size]
        yield kind, whole[8 : 8 + size], whole
        place += 12 + size


def essential(data: bytes) -> bytes:
    """The same picture without chunks that may be damaged and do not matter: texts, profiles, times, animations."""
    kept, colour_type = [SIGNATURE], data[25:26]
    for kind, content, whole in chunks(data):
        sound = kind in USED and whole[-4:] == struct.pack(">I", zlib.crc32(whole[4:-4]))
        if kind == b"tRNS":  # ignored if it has a wrong length
            sound &= len(content) == CLEAR[colour_type] if colour_type in CLEAR else len(content) > 0
        if sound or kind in PICTURE:
            kept.append(whole)
        if kind == b"IEND":
            break
    return b"".join(kept)


def deep(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a PNG with 16 bits per channel."""
    return head.startswith(SIGNATURE) and head[24:25] == b"\x10"


def clear_colour(data: bytes) -> tuple[int, ...]:
    """The transparent colour, gray or RGB, in the depth of the file; empty if there is none."""
    kinds = {kind: content for kind, content, _ in chunks(data) if kind in (b"IHDR", b"tRNS")}
    colour_type, content = kinds.get(b"IHDR", b"")[9:10], kinds.get(b"tRNS", b"")
    length = CLEAR.get(colour_type)
    return struct.unpack(f">{length // 2}H", content) if length and len(content) == length else ()


def samples(data: bytes) -> Samples | None:
    """The pixel values of a PNG with 16 bits per channel or a transparent colour, which Pillow drops; otherwise None.

    Args:
        data: the result of `essential`, with an intact IHDR chunk.

    Raises:
        OSError and other exceptions of Pillow: the file is damaged.
    """
    depth, colour_type = data[24], data[25]
    clear = clear_colour(data)
    if depth != 16 and not clear:
        return None
    plain = b"".join([SIGNATURE, *(whole for kind, _, whole in chunks(data) if kind != b"tRNS")])
    values = deep_values(plain, colour_type) if depth == 16 else shallow_values(plain)
    alpha, bits = "straight" if colour_type in (4, 6) else "", max(depth, 8)
    if clear:
        key = np.array(clear) * (255 // (2**depth - 1) if depth < 8 else 1)  # Pillow scales lower depths to 8 bits
        opacity = np.where((values == key).all(axis=2, keepdims=True), 0, 2**bits - 1)
        values, alpha = np.concatenate([values, opacity.astype(values.dtype)], axis=2), "straight"
    return Samples(values, bits, alpha)


def shallow_values(data: bytes) -> np.ndarray:
    """The values of a gray or RGB PNG of up to 8 bits: uint8 (H, W, S)."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))


def deep_values(data: bytes, colour_type: int) -> np.ndarray:
    """The values of a PNG of 16 bits: uint16 (H, W, S).

    With several channels, Pillow returns only the upper 8 bits. Read again as little-endian, it returns the lower
    8 bits. Gray with opacity has as many bytes as 8-bit RGBA, and is read as such.
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
    """Read the bytes of a PNG in a raw mode of Pillow: uint8 (H, W, S)."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        [tile] = image.tile
        image.tile = [tile._replace(args=raw)]
        return np.asarray(image)


def as_rgba(data: bytes) -> bytes:
    """The same file with a header of 8-bit RGBA."""
    head = data[12:24] + bytes([8, 6]) + data[26:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
