"""Reads TIFF files of any layout with tifffile, or with Pillow if tifffile lacks a codec.

The first page that is neither a thumbnail nor a mask is read. A page that is not a picture, for example with five
channels, is refused with its description.
"""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from crlf.data.files.samples import Samples
from crlf.errors import InputError, first_line

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MINISWHITE, MINISBLACK, RGB, PALETTE, MASK, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 4, 5, 6, 8
GRAY = (MINISWHITE, MINISBLACK, MASK)
REDUCED, MASKS = 1, 4  # bits of a page's subfile type
PREMULTIPLIED, STRAIGHT = 1, 2
CMYK = 1  # inks
ORIENTATION, INKS = 274, 332
CHANNELS = (3, 4)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs every unusual tag


def is_tiff(head: bytes) -> bool:
    return head.startswith(HEADS)


def size(data: bytes) -> tuple[int, int]:
    """Width and height of the first page, in pixels.

    Raises:
        InputError: the file is damaged. The message gives only the reason.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = shown_page(file)
            return page.imagewidth, page.imagelength
    except Exception as error:  # a damaged header raises many kinds of exceptions
        raise InputError(f"it is a damaged TIFF: {first_line(error)}") from error


def read(data: bytes, max_pixels: int) -> tuple[Samples | Image.Image, int]:
    """Read the first page; returns its values or an image, and its EXIF orientation.

    Raises:
        InputError: the file is damaged, has too many pixels, or is not a picture. The message gives only the reason.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = shown_page(file)
            require_pixels(page, max_pixels)
            require_picture(page)
            found = samples(file, page)
            tag = page.tags.get(ORIENTATION)
            lies = tag is not None and isinstance(found, Samples)  # Pillow turns what it reads
            return found, int(tag.value) if lies else 1
    except InputError:
        raise
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise InputError(f"it is a damaged TIFF: {first_line(error)}") from error


def shown_page(file: Any) -> Any:
    """The first page that is neither a reduced copy of another page nor a mask; if there is none, the first page."""
    return next((page for page in file.pages if not int(page.subfiletype) & (REDUCED | MASKS)), file.pages.first)


def require_pixels(page: Any, max_pixels: int) -> None:
    width, height = page.imagewidth, page.imagelength
    if width * height * page.imagedepth > max_pixels:
        raise InputError(f"it has {width:,} × {height:,} pixels, more than {max_pixels:,}")
    if not width * height * page.imagedepth:
        raise InputError("it has no pixels")


def told(page: Any) -> str:
    """The channels and bits of a page, in words."""
    kinds = {1: "", 2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
    channels = f"{page.samplesperpixel} channels" if page.samplesperpixel > 1 else "1 channel"
    return f"{channels} of {page.bitspersample} {kinds.get(page.sampleformat, '')}bits"


def refused(page: Any, why: str = "") -> InputError:
    return InputError(f"it is a TIFF of a kind that cannot be read ({told(page)}{why and ', '}{why})")


def layout(page: Any) -> tuple[int, str, int]:
    """The number of colour channels; the kind of opacity, "straight", "premultiplied" or "" for none; and the index of
    its channel."""
    kind, extra = int(page.photometric), tuple(int(e) for e in page.extrasamples)
    channels = page.samplesperpixel
    colours = {RGB: 3, YCBCR: 3, CIELAB: 3, SEPARATED: 4, PALETTE: 1}.get(kind, 1)
    if kind == MINISBLACK and channels == 3 and not {PREMULTIPLIED, STRAIGHT} & set(extra):
        return 3, "", 0  # as GDAL and others write colours
    if channels == colours + 1 and not extra and kind == RGB:
        return colours, "straight", colours
    after = extra[-(channels - colours) :] if 0 < channels - colours <= len(extra) else ()
    kinds = {PREMULTIPLIED: "premultiplied", STRAIGHT: "straight"}
    place = next((i for i, what in enumerate(after) if what in kinds), None)
    return (colours, "", 0) if place is None else (colours, kinds[after[place]], colours + place)


def require_picture(page: Any) -> None:
    """Raise InputError if the channels of a page are not a picture."""
    kind, channels = int(page.photometric), page.samplesperpixel
    if kind not in (*GRAY, RGB, PALETTE, SEPARATED, YCBCR, CIELAB):
        raise refused(page, f"photometric {getattr(page.photometric, 'name', kind)}")
    inks = page.tags.get(INKS)
    if kind == SEPARATED and inks is not None and inks.value != CMYK:
        raise refused(page, "inks other than CMYK")
    colours, alpha, place = layout(page)
    spare = kind in (RGB, SEPARATED)  # an extra channel is ignored, as in Pillow
    plain = channels == colours or (alpha and place == colours)
    if page.sampleformat in (5, 6) or channels < colours or not (plain or spare):
        raise refused(page)


def samples(file: Any, page: Any) -> Samples | Image.Image:
    """The values of a page, or an image if only Pillow can read it correctly."""
    colours, alpha, place = layout(page)
    try:
        values, colours = numbers(file, page, colours)
    except Exception as error:
        return by_pillow(file, page, error)
    kind = int(page.photometric)
    if kind == CIELAB or (kind == YCBCR and not is_jpeg(page)):
        if values.dtype != np.uint8:
            raise refused(page, f"photometric {page.photometric.name}")
        return in_colour_space(values[..., :3], "LAB" if kind == CIELAB else "YCbCr")
    bits = page.bitspersample
    shown = values[..., :colours]
    if kind == PALETTE:
        table = page.colormap  # uint16 (3, 2^bits)
        scaled = table >> 8 if table.max() > 255 else table  # some writers use 8 bits
        shown, opacity_bits = np.moveaxis(scaled[:, np.minimum(values[..., 0], table.shape[1] - 1)], 0, -1), bits
        shown, bits = shown.astype(np.uint8), 8
        if alpha and opacity_bits != 8:
            raise refused(page, "colours of a table, with opacity")
    if alpha:
        shown = np.concatenate([shown, values[..., place : place + 1].astype(shown.dtype)], axis=2)
    return Samples(shown, bits, alpha, kind == MINISWHITE)


def numbers(file: Any, page: Any, colours: int) -> tuple[np.ndarray, int]:
    """The values of the first page, (H, W, S), and the number of colour channels.

    Pages that are 3 or 4 pixels wide are the rows of one image with the channels last: older versions of tifffile wrote
    colour images like this if they were not declared as RGB.
    """
    if page.imagewidth in CHANNELS and page.samplesperpixel == 1 and int(page.photometric) in GRAY:
        series = file.series[0]
        if len(series.shape) == 3 and series.shape[2] in CHANNELS and series.kind == "shaped":
            return series.asarray()[..., :3], 3
    planes = page.asarray(maxworkers=1).reshape(page.shaped)[:, 0]  # (planes, H, W, channels of one)
    return (np.moveaxis(planes[..., 0], 0, -1) if len(planes) > 1 else planes[0]), colours


def is_jpeg(page: Any) -> bool:
    """Whether the page is compressed by a codec that decodes to RGB."""
    return int(page.compression) in (6, 7, 34892, 33003, 33004, 33005, 34712)


def in_colour_space(values: np.ndarray, mode: str) -> Image.Image:
    """An image from uint8 (H, W, 3) in Lab or YCbCr."""
    height, width = values.shape[:2]
    if mode == "LAB":  # a* and b* are signed in the file, and begin at -128 in Pillow
        values = values ^ np.array([0, 128, 128], dtype=np.uint8)
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())


def by_pillow(file: Any, page: Any, error: Exception) -> Image.Image:
    """Read a page with Pillow, which is correct up to 8 bits.

    Raises:
        InputError: the page has more bits, or Pillow cannot read it either.
    """
    codec = f"{page.compression.name}: {first_line(error)}" if int(page.compression) > 1 else first_line(error)
    deep = max(np.atleast_1d(page.bitspersample)) > 8
    if deep and (int(page.photometric) == MINISWHITE or page.samplesperpixel > 1):
        raise refused(page, codec) from error
    try:
        file.filehandle.seek(0)
        image = Image.open(io.BytesIO(file.filehandle.read()), formats=["TIFF"])
        image.load()
    except Exception:
        raise refused(page, codec) from error
    return image
