"""PNG files: every depth and every transparency lies on white; what is damaged beside the picture is no matter."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_images import RGB, encoded

from crlf.data.files.decode import decode, peak
from crlf.errors import InputError

SIDE = 16
RANDOM = np.random.default_rng(3)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of each colour type
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # Adam7


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def rows(values: np.ndarray, depth: int) -> bytes:
    """(H, W, S) as the rows of a PNG, without a filter."""
    if not values.size:
        return b""
    if depth >= 8:
        packed = values.astype(">u2" if depth == 16 else "u1").reshape(len(values), -1).view(np.uint8)
    else:
        bits = (values.reshape(len(values), -1, 1) >> np.arange(depth)[::-1]) & 1
        packed = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def png(values: np.ndarray, depth: int, colours: int, *extra: bytes, interlaced: bool = False) -> bytes:
    parts = [values[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [values]
    content = zlib.compress(b"".join(rows(part, depth) for part in parts))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colours, 0, 0, interlaced)
    middle = b"".join(extra) + chunk(b"IDAT", content)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IEND", b"")


def eight(values: np.ndarray, depth: int) -> np.ndarray:
    return np.rint(values * (255 / (2**depth - 1)))


CASES = [
    (colours, depth, clear, interlaced)
    for colours, depths in DEPTHS.items()
    for depth, clear, interlaced in itertools.product(depths, (False, True), (False, True))
    if not (clear and colours in (4, 6))
]


@pytest.mark.parametrize(("colours", "depth", "clear", "interlaced"), CASES)
def test_every_depth_and_every_transparency(colours: int, depth: int, clear: bool, interlaced: bool):
    values = RANDOM.integers(0, 2**depth, (SIDE, SIDE, CHANNELS[colours]))
    extra, shown, opacity = [], eight(values, depth), np.ones((SIDE, SIDE, 1))
    if colours == 3:
        table, clearness = RANDOM.integers(0, 256, (2**depth, 3)), RANDOM.integers(0, 256, 2**depth)
        extra = [chunk(b"PLTE", table.astype(np.uint8).tobytes())]
        shown = table[values[..., 0]]
        if clear:
            extra.append(chunk(b"tRNS", clearness.astype(np.uint8).tobytes()))
            opacity = clearness[values] / 255
    elif colours in (4, 6):
        shown, opacity = shown[..., :-1], values[..., -1:] / (2**depth - 1)
    elif clear:
        key = values[3, 5]
        extra = [chunk(b"tRNS", struct.pack(f">{len(key)}H", *key.tolist()))]
        opacity = np.where((values == key).all(axis=2, keepdims=True), 0, 1)
    expected = shown * opacity + 255 * (1 - opacity)
    found = decode(png(values, depth, colours, *extra, interlaced=interlaced), SIDE).transpose(1, 2, 0)
    assert abs(found - expected).max() <= (1 if colours in (3, 4, 6) else 0.51), (found[3, 5], expected[3, 5])


@pytest.mark.parametrize("colours", [0, 2, 4, 6])
def test_sixteen_bits_are_those_of_the_file(colours: int):
    """With a white of 4095, only exact numbers give these 8 bits."""
    values = RANDOM.integers(0, 4096, (SIDE, SIDE, CHANNELS[colours]))
    if colours in (4, 6):
        values[..., -1] = 65535
    content = png(values, 16, colours)
    shown = values[..., :-1] if colours in (4, 6) else values
    assert peak(content) == shown.max()
    found = decode(content, SIDE, white=4095).transpose(1, 2, 0)
    assert np.array_equal(found, np.broadcast_to(np.rint(shown * (255 / 4095)), (SIDE, SIDE, 3)))


def spoilt(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    whole = encoded(Image.fromarray(RGB), "PNG")
    return whole[:33] + chunk(kind, body, wrong) + whole[33:]


BOMB = b"k\0\0" + zlib.compress(b"x" * 3_000_000)
BESIDE = {
    "a text with a wrong checksum": spoilt(b"tEXt", b"k\0text", wrong=1),
    "a long text": spoilt(b"zTXt", BOMB),
    "an international text that is cut": spoilt(b"iTXt", b"k\0\1\0\0\0nonsense"),
    "a colour profile that is none": spoilt(b"iCCP", b"p\0\0nonsense"),
    "a cut gamma": spoilt(b"gAMA", b"\0"),
    "exif that is text": spoilt(b"eXIf", b"not exif at all"),
    "exif that is cut": spoilt(b"eXIf", b"MM\0*\0\0\0\x08\0\x09"),
    "exif with a wrong checksum": spoilt(b"eXIf", b"MM\0*\0\0\0\x08\0\0", wrong=7),
    "empty exif": spoilt(b"eXIf", b""),
    "a transparency with a wrong checksum": spoilt(b"tRNS", b"\0\0\0\0\0\0", wrong=1),
    "a transparency that is cut": spoilt(b"tRNS", b"\0"),
    "half an animation": spoilt(b"acTL", b"\0\0\0\x05\0\0\0\0"),
    "a chunk of its own": spoilt(b"abCd", b"\xff" * 99),
    "a text after the picture": encoded(Image.fromarray(RGB), "PNG")[:-12] + chunk(b"zTXt", BOMB, 3)
    + chunk(b"IEND", b""),
    "no end": encoded(Image.fromarray(RGB), "PNG")[:-12],
    "more after the end": encoded(Image.fromarray(RGB), "PNG") + b"more" * 9,
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_damaged_beside_the_picture_is_no_matter(name: str):
    assert np.array_equal(decode(BESIDE[name], 32).transpose(1, 2, 0), RGB)


@pytest.mark.parametrize("cut", [8, 20, 33, 40, 300])
@pytest.mark.parametrize("colours", [2, 0])
def test_a_cut_file_of_16_bits_is_a_reason(cut: int, colours: int):
    content = png(RANDOM.integers(0, 65536, (SIDE, SIDE, CHANNELS[colours])), 16, colours, chunk(b"tRNS", b"\0" * 6))
    with pytest.raises(InputError, match="damaged"):
        decode(content[:cut], SIDE)
