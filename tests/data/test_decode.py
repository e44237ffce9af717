"""Files of every kind become the pixels that they hold, or a reason why not."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from tiny_images import GRAY, RGB, WIDE, encoded

from crlf.data.files.decode import decode, open_image
from crlf.errors import InputError

RANDOM = np.random.default_rng(1)

HALF = np.dstack([RGB, np.where(np.arange(32) < 16, 0, 255).astype(np.uint8)[None].repeat(32, 0)])  # clear on the left
ON_WHITE = np.where(np.arange(32)[None, :, None] < 16, 255, RGB)


def lossless(kind: str) -> Callable[[], tuple[bytes, np.ndarray]]:
    options = {"lossless": True} if kind == "WEBP" else {}
    return lambda: (encoded(Image.fromarray(RGB), kind, **options), RGB)


def palette(**options: object) -> tuple[bytes, np.ndarray]:
    """A picture of 16 colours; with transparency=3, colour 3 is clear."""
    places = (GRAY % 16).astype(np.uint8)
    colours = RANDOM.integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.frombytes("P", (32, 32), places.tobytes())
    image.putpalette(colours.tobytes())
    expected = colours[places]
    if "transparency" in options:
        expected[places == options["transparency"]] = 255
    return encoded(image, str(options.pop("kind")), **options), expected


def frames(kind: str) -> tuple[bytes, np.ndarray]:
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    expected = np.zeros((32, 32, 3), dtype=np.uint8)
    expected[..., 0] = 255
    return encoded(first, kind, save_all=True, append_images=[second]), expected


def deep_rgb() -> tuple[bytes, np.ndarray]:
    """A PNG of 16 bits a channel, which Pillow cannot write: made by hand."""
    deep = (RGB.astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    return png(32, 32, 16, 2, zlib.compress(rows)), np.rint(deep / 257)


def png(width: int, height: int, depth: int, colours: int, content: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def turned(orientation: int, expected: np.ndarray) -> Callable[[], tuple[bytes, np.ndarray]]:
    def make() -> tuple[bytes, np.ndarray]:
        image, exif = Image.fromarray(RGB), Image.Exif()
        exif[0x0112] = orientation
        return encoded(image, "PNG", exif=exif), expected

    return make


def gray(values: np.ndarray) -> np.ndarray:
    return np.dstack([values] * 3)


FILES: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    **{kind.lower(): lossless(kind) for kind in ("PNG", "WEBP", "TIFF", "BMP")},
    "gray": lambda: (encoded(Image.fromarray(GRAY), "PNG"), gray(GRAY)),
    "one bit": lambda: (encoded(Image.fromarray(GRAY > 99), "PNG"), gray(np.where(GRAY > 99, 255, 0))),
    "16-bit gray png": lambda: (encoded(Image.fromarray(WIDE), "PNG"), gray(np.rint(WIDE / 257))),
    "16-bit gray tiff": lambda: (encoded(Image.fromarray(WIDE), "TIFF"), gray(np.rint(WIDE / 257))),
    "16-bit colour": deep_rgb,
    "fractions": lambda: (
        encoded(Image.fromarray((GRAY / 255).astype(np.float32)), "TIFF"),
        gray(GRAY),
    ),
    "clear half": lambda: (encoded(Image.fromarray(HALF), "PNG"), ON_WHITE),
    "clear half webp": lambda: (encoded(Image.fromarray(HALF), "WEBP", lossless=True), ON_WHITE),
    "gray, clear half": lambda: (
        encoded(Image.fromarray(np.dstack([GRAY, HALF[..., 3]])), "PNG"),
        np.where(np.arange(32)[None, :, None] < 16, 255, gray(GRAY)),
    ),
    "palette": lambda: palette(kind="PNG"),
    "palette gif": lambda: palette(kind="GIF"),
    "palette with a clear colour": lambda: palette(kind="PNG", transparency=3),
    "first frame of a gif": lambda: frames("GIF"),
    "first page of a tiff": lambda: frames("TIFF"),
    "cmyk": lambda: (
        encoded(Image.frombytes("CMYK", (32, 32), np.dstack([255 - RGB, np.zeros_like(GRAY)]).tobytes()), "TIFF"),
        RGB,
    ),
    "mirrored": turned(2, RGB[:, ::-1]),
    "upside down": turned(3, RGB[::-1, ::-1]),
    "to be turned right": turned(6, np.rot90(RGB, -1)),
    "to be turned left": turned(8, np.rot90(RGB)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_pixels_that_were_drawn(name: str):
    content, expected = FILES[name]()
    assert np.array_equal(decode(content, 32).transpose(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_as_pillow_reads_it(mode: str):
    content = encoded(Image.fromarray(RGB).convert(mode), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(content, 32).transpose(1, 2, 0), expected)
    assert abs(expected.mean() - np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB")).mean()) < 3


def test_the_shorter_side_is_scaled_and_the_middle_is_kept():
    y, x = np.mgrid[:80, :200] / 200
    smooth = Image.fromarray(
        (127 + 120 * np.dstack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * x * y)])).astype(np.uint8)
    )
    expected = np.asarray(smooth.resize((80, 32), Image.Resampling.BICUBIC).crop((24, 0, 56, 32)), dtype=int)
    ours = decode(encoded(smooth, "PNG"), 32).transpose(1, 2, 0).astype(int)
    assert abs(ours - expected)[:, 2:-2].max() <= 1  # at the cut Pillow's filter sees no further
    upright = decode(encoded(smooth.transpose(Image.Transpose.TRANSPOSE), "PNG"), 32)
    assert abs(upright.transpose(2, 1, 0) - ours).max() <= 1  # Pillow before 13 rounds rows otherwise than columns


def test_shrinking_is_antialiased():
    checks = np.indices((256, 256)).sum(0) % 2 * 255  # a pixel in two: without a filter it would be all black or white
    assert abs(decode(encoded(Image.fromarray(checks.astype(np.uint8)), "PNG"), 32).astype(int) - 127).max() < 3


def test_a_large_jpeg_decoded_at_a_fraction_is_the_same_image():
    y, x = np.mgrid[:640, :960] / 640
    smooth = (127 + 120 * np.dstack([np.sin(9 * x), np.cos(7 * y), np.sin(9 * x * y)])).astype(np.uint8)
    exact = decode(encoded(Image.fromarray(smooth), "PNG"), 64).astype(int)
    assert abs(decode(encoded(Image.fromarray(smooth), "JPEG", quality=95), 64) - exact).max() < 8


def whole_png() -> bytes:
    return encoded(Image.fromarray(RGB), "PNG")


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"a,b\n1,2\n", "it is no JPEG, PNG, WebP"),
    "cut": (lambda: whole_png()[:900], "damaged"),
    "cut jpeg": (lambda: encoded(Image.fromarray(RGB), "JPEG")[:700], "damaged"),
    "header only": (lambda: whole_png()[:20], "it is"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no"),
    "bomb": (lambda: png(60_000, 60_000, 1, 0, b""), "more than"),
    "large": (lambda: png(2000, 1000, 1, 0, zlib.compress(b"\0" * 251_000)), "2,000 × 1,000 pixels, more than 1,000"),
    "float of no known white": (
        lambda: encoded(Image.fromarray(np.full((9, 9), 7.5, dtype=np.float32)), "TIFF"),
        "no white is known",
    ),
    "not a number": (lambda: encoded(Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)), "TIFF"), "no white"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_says_why(name: str):
    make, reason = BROKEN[name]
    with pytest.raises(InputError, match=reason) as refused:
        decode(make(), 32, max_pixels=1_000_000)
    assert "\n" not in str(refused.value)


def test_a_header_is_enough_to_refuse_a_bomb():
    with pytest.raises(InputError, match="pixels"):
        open_image(io.BytesIO(png(20_000, 5_001, 1, 0, b"")), 100_000_000)


def test_random_damage_is_an_image_or_a_reason():
    damage = random.Random(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        content = encoded(Image.fromarray(RGB), kind)
        for _ in range(20):
            spoiled = bytearray(content)
            for _ in range(5):
                spoiled[damage.randrange(len(spoiled))] = damage.randrange(256)
            try:
                assert decode(bytes(spoiled), 32, 10_000).shape == (3, 32, 32)
            except InputError as reason:
                assert str(reason)
