"""HEIC, AVIF, JPEG XL and JPEG 2000; orientation that lies in damaged EXIF; and what a file is called that is none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tiny_images import GRAY, RGB, WIDE, encoded

from crlf.data.files import decode as module
from crlf.data.files.decode import NoImage, decode, image_size, kind_of, rgb, upright
from crlf.errors import InputError

pillow_heif = pytest.importorskip("pillow_heif")
imagecodecs = pytest.importorskip("imagecodecs")

OPACITY = np.where(np.arange(32)[None] < 16, 0, 255).astype(np.uint8).repeat(32, 0)
CLEAR = np.where(OPACITY[..., None] == 0, 255, RGB)
y, x = np.mgrid[:32, :32] / 32
SMOOTH = (127 + 120 * np.dstack([np.sin(3 * x), np.cos(2 * y), np.sin(2 * x * y)])).astype(np.uint8)
EXACT = {
    "jpeg 2000": (encoded(Image.fromarray(RGB), "JPEG2000"), RGB),
    "jpeg 2000, opacity": (encoded(Image.fromarray(np.dstack([RGB, OPACITY])), "JPEG2000"), CLEAR),
    "jpeg 2000, 16 bits": (encoded(Image.fromarray(WIDE), "JPEG2000"), np.dstack([np.rint(WIDE / 257)] * 3)),
    "jpeg 2000, a bare stream": (encoded(Image.fromarray(RGB), "JPEG2000", no_jp2=True), RGB),
    "jpeg xl": (imagecodecs.jpegxl_encode(RGB, lossless=True), RGB),
    "jpeg xl, gray": (imagecodecs.jpegxl_encode(GRAY, lossless=True), np.dstack([GRAY] * 3)),
    "jpeg xl, 16 bits": (imagecodecs.jpegxl_encode(WIDE, lossless=True), np.dstack([np.rint(WIDE / 257)] * 3)),
    "jpeg xl, opacity": (imagecodecs.jpegxl_encode(np.dstack([RGB, OPACITY]), lossless=True), CLEAR),
    "avif, opacity": (encoded(Image.fromarray(np.dstack([np.full_like(RGB, 99), OPACITY])), "AVIF"),
                      np.where(OPACITY[..., None] == 0, 255, 99)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_lossless_files_have_the_pixels_that_were_drawn(name: str):
    content, expected = EXACT[name]
    found = decode(content, 32).transpose(1, 2, 0)
    assert abs(found.astype(int) - expected).max() <= (1 if "avif" in name else 0)
    assert image_size(io.BytesIO(content)) == (32, 32)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_lossy_files_are_close_and_upright(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(SMOOTH), kind, quality=95, exif=exif)
    turned = orientation == 6 and kind == "AVIF"  # HEIC is turned by its own box, which pillow-heif heeds, not by EXIF
    expected = np.rot90(SMOOTH, -1) if turned else SMOOTH
    assert abs(decode(content, 32).transpose(1, 2, 0).astype(int) - expected).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_leaves_the_picture_as_it_lies(kind: str, exif: bytes):
    plain = decode(encoded(Image.fromarray(SMOOTH), kind), 32)
    assert np.array_equal(decode(encoded(Image.fromarray(SMOOTH), kind, exif=exif), 32), plain)


def test_an_image_of_pillows_of_any_mode():
    for mode in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "HSV",
        "I",
        "F",
        "I;16",
    ):
        source = Image.fromarray(RGB).convert("RGBA")
        if mode in ("I", "F", "I;16"):
            image = Image.fromarray((WIDE / 65535).astype(np.float32) if mode == "F" else WIDE.astype(np.uint16 if
                                    mode == "I;16" else np.int32))  # fmt: skip
        elif mode in ("La", "PA"):
            image = source.convert("LA" if mode == "La" else "P").convert(mode)
        else:
            image = source.convert(mode) if mode != "HSV" else source.convert("RGB").convert(mode)
        assert rgb(upright(image)).mode == "RGB", mode


def test_what_a_file_is_called():
    for kind, name in [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WebP"), ("TIFF", "TIFF"), ("GIF", "GIF"),
                       ("BMP", "BMP"), ("AVIF", "AVIF"), ("HEIF", "HEIC"), ("JPEG2000", "JPEG 2000")]:  # fmt: skip
        content = encoded(Image.fromarray(RGB), kind)
        assert kind_of(content[:32]) == name
        with pytest.raises(InputError, match=r"damaged|of a kind") as refused:
            decode(content[:60], 32)
        assert not isinstance(refused.value, NoImage), (kind, refused.value)


def test_what_is_no_image_is_called_so():
    for content in (b"", b"{}", b"<x/>", b"\0\0\0\x20ftypisom" + b"\0" * 99, b"%PDF-1.7", b"PK\3\4"):
        with pytest.raises(NoImage):
            decode(content, 32)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    heic, jxl = encoded(Image.fromarray(RGB), "HEIF"), EXACT["jpeg xl"][0]
    monkeypatch.setattr(module, "FORMATS", ("JPEG", "PNG"))
    with pytest.raises(InputError, match=r"it is HEIC, which needs pillow-heif: pip install 'crlf\[heif\]'"):
        decode(heic, 32)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"it is JPEG XL, which needs imagecodecs: pip install 'crlf\[tiff\]'"):
        decode(jxl, 32)
