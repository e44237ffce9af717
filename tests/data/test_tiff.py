"""TIFF files of any layout become the picture that tifffile sees, or a reason that is true."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_images import GRAY, RGB, WIDE, encoded

from crlf.data.files.decode import decode, image_size
from crlf.errors import InputError

WIDE_RGB = np.dstack([WIDE, WIDE[::-1], WIDE.T])
OPACITY = np.where(np.arange(32)[None] < 16, 0, 255).astype(np.uint8).repeat(32, 0)  # clear on the left
CODECS = ("zlib", "lzw", "packbits", "lzma", "zstd", "jpeg2000", "lerc", "webp", "png", "jpegxl")


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def pages(*given: tuple[np.ndarray, int]) -> bytes:
    """Gray pages with their subfile types."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values, kind in given:
            writer.write(values, photometric="mask" if kind == 4 else "minisblack", subfiletype=kind)
    return file.getvalue()


def gray(values: np.ndarray) -> np.ndarray:
    return np.dstack([values] * 3)


def to_8(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257)


def clear(colours: np.ndarray) -> np.ndarray:
    return np.where(OPACITY[..., None] == 0, 255, colours)


def of_odd_widths() -> dict[str, tuple[bytes, np.ndarray]]:
    """Samples that are no whole bytes. imagecodecs packs them since 2026.3.6, which needs Python 3.11."""
    try:
        four = tiff(GRAY >> 4, bitspersample=4, photometric="minisblack")
        twelve = tiff(WIDE >> 4, bitspersample=12, photometric="minisblack")
    except NotImplementedError:
        return {}
    gray_of_twelve = gray(np.rint((WIDE >> 4) / (4095 / 255)))
    return {"four bits": (four, gray((GRAY >> 4) * 17)), "twelve bits, packed": (twelve, gray_of_twelve)}


PLANES = RGB.transpose(2, 0, 1)
TABLE = np.random.default_rng(4).integers(0, 65536, (3, 256), dtype=np.uint16)
LAYOUTS: dict[str, tuple[bytes, np.ndarray]] = {
    "rgb": (tiff(RGB, photometric="rgb"), RGB),
    "rgb in planes": (tiff(PLANES, photometric="rgb", planarconfig="separate"), RGB),
    "rgb in tiles": (tiff(RGB, photometric="rgb", tile=(16, 16)), RGB),
    "rgb in planes of tiles": (tiff(PLANES, photometric="rgb", planarconfig="separate", tile=(16, 16)), RGB),
    "rgb in strips": (tiff(RGB, photometric="rgb", rowsperstrip=5), RGB),
    "big endian": (tiff(RGB, photometric="rgb", byteorder=">"), RGB),
    "big tiff": (tiff(RGB, photometric="rgb", bigtiff=True), RGB),
    "pages": (tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"), RGB),
    "stack of gray pages": (tiff(np.stack([GRAY, 255 - GRAY]), photometric="minisblack"), gray(GRAY)),
    "volume": (tiff(np.stack([GRAY] * 3)[:, None], volumetric=True, photometric="minisblack"), gray(GRAY)),
    "imagej": (tiff(np.stack([WIDE, WIDE]), imagej=True), gray(to_8(WIDE))),
    "ome": (tiff(np.stack([GRAY] * 2), ome=True, photometric="minisblack"), gray(GRAY)),
    "three channels that are not said to be rgb": (tiff(RGB, photometric="minisblack", planarconfig="contig"), RGB),
    "pages of three columns": (tiff(WIDE_RGB, photometric="minisblack"), to_8(WIDE_RGB)),
    "white is zero": (tiff(255 - GRAY, photometric="miniswhite"), gray(GRAY)),
    "white is zero, 16 bits": (tiff(65535 - WIDE, photometric="miniswhite"), gray(to_8(WIDE))),
    "white is zero, 16 bits, big endian": (tiff(65535 - WIDE, photometric="miniswhite", byteorder=">"),
                                           gray(to_8(WIDE))),
    "white is zero, one bit": (tiff(GRAY < 99, photometric="miniswhite"), gray(np.where(GRAY < 99, 0, 255))),
    "one bit": (tiff(GRAY > 99, photometric="minisblack"), gray(np.where(GRAY > 99, 255, 0))),
    **of_odd_widths(),
    "16 bits": (tiff(WIDE), gray(to_8(WIDE))),
    "16 bits, big endian": (tiff(WIDE, byteorder=">"), gray(to_8(WIDE))),
    "16 bits, rgb": (tiff(WIDE_RGB, photometric="rgb"), to_8(WIDE_RGB)),
    "16 bits, rgb in planes, big endian": (
        tiff(WIDE_RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", byteorder=">"), to_8(WIDE_RGB)),
    "32 bits of up to 65535": (tiff(WIDE.astype(np.uint32)), gray(to_8(WIDE))),
    "32 bits, big endian": (tiff(WIDE.astype(np.uint32), byteorder=">"), gray(to_8(WIDE))),
    "64 bits of up to 65535": (tiff(WIDE.astype(np.uint64)), gray(to_8(WIDE))),
    "signed, 8 bits": (tiff((GRAY >> 1).astype(np.int8)), gray(np.rint((GRAY >> 1) * (255 / 127)))),
    "signed, 16 bits": (tiff((WIDE >> 1).astype(np.int16)), gray(np.rint((WIDE >> 1) * (255 / 32767)))),
    "signed, 32 bits": (tiff(WIDE.astype(np.int32)), gray(to_8(WIDE))),
    **{f"fractions, {kind}": (tiff((GRAY / 255).astype(kind)), gray(GRAY)) for kind in ("f2", "f4", "f8")},
    "fractions, rgb": (tiff((RGB / 255).astype(np.float32), photometric="rgb"), RGB),
    "fractions, big endian, predictor": (
        tiff((RGB / 255).astype("f4"), photometric="rgb", byteorder=">", compression="zlib", predictor=3), RGB),
    "16 bits, predictor": (tiff(WIDE, compression="lzw", predictor=2), gray(to_8(WIDE))),
    "opacity": (tiff(np.dstack([RGB, OPACITY]), photometric="rgb", extrasamples=["unassalpha"]), clear(RGB)),
    "opacity in planes": (tiff(np.stack([*PLANES, OPACITY]), photometric="rgb", planarconfig="separate",
                               extrasamples=["unassalpha"]), clear(RGB)),
    "opacity, 16 bits": (tiff(np.dstack([WIDE_RGB, OPACITY.astype("u2") * 257]), photometric="rgb",
                              extrasamples=["unassalpha"]), clear(to_8(WIDE_RGB))),
    "colours times opacity": (tiff(np.dstack([np.where(OPACITY[..., None] == 0, 0, RGB).astype("u1"), OPACITY]),
                                   photometric="rgb", extrasamples=["assocalpha"]), clear(RGB)),
    "gray and opacity": (tiff(np.dstack([GRAY, OPACITY]), photometric="minisblack", planarconfig="contig",
                              extrasamples=["unassalpha"]), clear(gray(GRAY))),
    "gray and opacity, 16 bits": (tiff(np.dstack([WIDE, OPACITY.astype("u2") * 257]), photometric="minisblack",
                                       planarconfig="contig", extrasamples=["unassalpha"]), clear(gray(to_8(WIDE)))),
    "fractions and opacity": (tiff(np.dstack([RGB, OPACITY]).astype("f4") / 255, photometric="rgb",
                                   extrasamples=["unassalpha"]), clear(RGB)),
    "a channel more, then opacity": (tiff(np.dstack([RGB, GRAY, OPACITY]), photometric="rgb",
                                          extrasamples=["unspecified", "unassalpha"]), clear(RGB)),
    "opacity, then a channel more": (tiff(np.dstack([RGB, OPACITY, GRAY]), photometric="rgb",
                                          extrasamples=["unassalpha", "unspecified"]), clear(RGB)),
    "a thumbnail before it": (pages((GRAY[:8, :8], 1), (GRAY > 99, 4), (GRAY, 0)), gray(GRAY)),
    "smaller copies after it": (pages((GRAY, 0), (GRAY[::2, ::2], 1)), gray(GRAY)),
    "a thumbnail alone": (pages((GRAY, 1)), gray(GRAY)),
    "a channel more": (tiff(np.dstack([RGB, GRAY]), photometric="rgb", extrasamples=["unspecified"]), RGB),
    "a table of colours": (tiff(GRAY, photometric="palette", colormap=TABLE),
                           np.moveaxis((TABLE >> 8)[:, GRAY], 0, -1)),
    "cmyk": (tiff(np.dstack([255 - RGB, np.zeros_like(GRAY)]), photometric="separated"), RGB),
    "cmyk in planes": (tiff(np.stack([*(255 - PLANES), np.zeros_like(GRAY)]), photometric="separated",
                            planarconfig="separate"), RGB),
    "cmyk, 16 bits": (tiff(np.dstack([65535 - WIDE_RGB, np.zeros_like(WIDE)]), photometric="separated"),
                      255 - to_8(65535 - WIDE_RGB)),
    "cmyk and opacity": (tiff(np.dstack([255 - RGB, np.zeros_like(GRAY), OPACITY]), photometric="separated",
                              extrasamples=["unassalpha"]), clear(RGB)),
    "ycbcr": (tiff(np.asarray(Image.fromarray(RGB).convert("YCbCr")), photometric="ycbcr", subsampling=(1, 1)),
              np.asarray(Image.fromarray(RGB).convert("YCbCr").convert("RGB"))),
    **{f"{codec}": (tiff(RGB, photometric="rgb", compression=codec), RGB) for codec in CODECS
       if codec not in ("webp", "jpegxl")},
    "webp": (tiff(RGB, photometric="rgb", compression="webp", compressionargs={"lossless": True}), RGB),
    "jpeg xl": (tiff(RGB, photometric="rgb", compression="jpegxl", compressionargs={"lossless": True}), RGB),
    **{f"{codec}, 16 bits": (tiff(WIDE, compression=codec), gray(to_8(WIDE)))
       for codec in ("zlib", "lzw", "jpeg2000", "lerc", "png", "zstd")},
    **{f"pillow, {kind}": (encoded(Image.fromarray(GRAY > 99), "TIFF", compression=kind),
                           gray(np.where(GRAY > 99, 255, 0))) for kind in ("group3", "group4", "tiff_ccitt")},
    "pillow, cmyk": (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_pixels_that_were_written(name: str):
    content, expected = LAYOUTS[name]
    found = decode(content, 32).transpose(1, 2, 0)
    assert np.array_equal(found, expected), np.abs(found.astype(int) - expected).max()
    assert sorted(image_size(io.BytesIO(content)))[-1] == 32


@pytest.mark.parametrize("colours", ["rgb", "ycbcr", "minisblack"])
def test_jpeg_in_tiff_is_close(colours: str):
    y, x = np.mgrid[:32, :32] / 32
    smooth = (127 + 120 * np.dstack([np.sin(3 * x), np.cos(2 * y), np.sin(2 * x * y)])).astype(np.uint8)
    array = smooth[..., 0] if colours == "minisblack" else smooth
    options = {"level": 95} | ({"outcolorspace": colours} if colours == "ycbcr" else {})
    kind = "minisblack" if colours == "minisblack" else "rgb"
    content = tiff(array, photometric=kind, compression="jpeg", compressionargs=options)
    assert abs(decode(content, 32).transpose(1, 2, 0).astype(int) - np.atleast_3d(array)).max() < 25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int):
    turned = decode(tiff(RGB[:, :20], photometric="rgb", extratags=[(274, "H", 1, orientation, True)]), 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(turned, decode(encoded(Image.fromarray(RGB[:, :20]), "PNG", exif=exif), 20))


REFUSED: dict[str, tuple[bytes, str]] = {
    "five channels": (tiff(np.stack([GRAY] * 5), photometric="minisblack", planarconfig="separate"),
                      "cannot be read (5 channels of 8 bits)"),
    "two channels, 16 bits": (tiff(np.stack([WIDE] * 2), photometric="minisblack", planarconfig="separate"),
                              "cannot be read (2 channels of 16 bits)"),
    "complex": (tiff(GRAY.astype(np.complex64)), "cannot be read (1 channel of 64 complex bits)"),
    "a camera's raw data": (tiff(WIDE, photometric="cfa"), "photometric CFA"),
    "six inks": (tiff(np.dstack([GRAY] * 6), photometric="separated", planarconfig="contig",
                      extratags=[(332, "H", 1, 2, True)]), "inks other than CMYK"),
    "negative": (tiff(WIDE.astype(np.int32) - 40000), "no white is known"),
    "more than 16 bits": (tiff(WIDE.astype(np.uint32) * 1000), "no white is known"),
    "not a number": (tiff(np.full((32, 32), np.nan, np.float32)), "no white is known"),
    "cut": (tiff(RGB, photometric="rgb")[:900], "TIFF"),
    "no more than a head": (b"II*\0\x08\0\0\0", "it is a damaged TIFF"),
    "nothing at all": (b"MM\0*", "it is a damaged TIFF"),
    "too many pixels": (tiff(np.zeros((1100, 1000), np.uint8)), "1,000 × 1,100 pixels, more than 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_called_what_it_is(name: str):
    content, reason = REFUSED[name]
    with pytest.raises(InputError) as refused:
        decode(content, 32, 1_000_000)
    assert reason in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400


WITHOUT = {"rgb": True, "lzw": True, "pillow, group4": True, "white is zero, 16 bits": True, "zlib, 16 bits": True,
           "16 bits, predictor": False, "four bits": True, "webp": True}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in WITHOUT if name in LAYOUTS])
def test_without_imagecodecs_a_file_is_the_same_or_says_why(name: str, monkeypatch: pytest.MonkeyPatch):
    from tifffile import tifffile as inner

    def missing(*arguments: Any, **named: Any) -> Any:
        raise ValueError("<COMPRESSION> requires the 'imagecodecs' package")

    content, expected = LAYOUTS[name]
    if "requires" not in str(getattr(inner, "imagecodecs", "")):
        monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda page: missing))
    try:
        found = decode(content, 32).transpose(1, 2, 0)
    except InputError as error:
        assert "of a kind that cannot be read (" in str(error) and "imagecodecs" in str(error)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_half_opacity(kind: str):
    half = np.full_like(GRAY, 128)
    written = np.rint(RGB * (128 / 255)).astype(np.uint8) if kind == "assocalpha" else RGB
    found = decode(tiff(np.dstack([written, half]), photometric="rgb", extrasamples=[kind]), 32).transpose(1, 2, 0)
    assert abs(found - (RGB * (128 / 255) + 127)).max() <= 1
