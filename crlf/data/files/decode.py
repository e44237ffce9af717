"""One image file to pixels: any of `FORMATS`, upright, in RGB, square.

The shorter side is scaled to the size that is asked for, with antialiasing (Pillow's bicubic filter, widened when it
shrinks), and the middle of the longer side is kept: nothing is stretched, and what people photograph is in the middle.
Colour profiles are not applied.
"""

from __future__ import annotations

import io
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crlf.errors import InputError, first_line

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
PILLOW = 178_956_970  # pixels from which Pillow itself takes an image for a decompression bomb
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")  # as their files are usually called
KINDS = "JPEG, PNG, WebP, TIFF, GIF or BMP"


def open_image(file: IO[bytes], max_pixels: int = PILLOW) -> Image.Image:
    """The image in an open file; of several, as in a GIF or a TIFF, the first. Only its header is read.

    Raises:
        InputError: it is no image, or one of too many pixels. Says only why.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"it is no {KINDS}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"it has more than {max_pixels:,} pixels") from error
    except Exception as error:  # a damaged header raises almost any kind
        raise InputError(f"it is damaged: {first_line(error)}") from error
    if image.width * image.height > max_pixels:
        raise InputError(f"it has {image.width:,} × {image.height:,} pixels, more than {max_pixels:,}")
    if not image.width * image.height:
        raise InputError("it has no pixels")
    return image


def decode(data: bytes, side: int, max_pixels: int = PILLOW) -> np.ndarray:
    """An image file's bytes as uint8 (3, side, side).

    Raises:
        InputError: as `open_image`, or it is empty, damaged, or of numbers of which none is known to be white. Says
            only why.
    """
    if not data:
        raise InputError("it is empty")
    image = open_image(io.BytesIO(data), max_pixels)
    try:
        # A JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size leaves the antialiasing to do.
        image.draft(None, (2 * side, 2 * side))
        return square(rgb(ImageOps.exif_transpose(image)), side)
    except InputError:
        raise
    except Exception as error:  # damaged pixels raise almost any kind
        raise InputError(f"it is damaged: {first_line(error)}") from error


def square(image: Image.Image, side: int) -> np.ndarray:
    """The middle of an RGB image, scaled: uint8 (3, side, side)."""
    fitted = ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: what is transparent lies on white, and 16 bits become 8.

    Raises:
        InputError: 32-bit pixels that are neither 0..65535 nor fractions of one.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return eight_bits(image).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """A gray image of 16-bit numbers, or of fractions, as one of 8 bits."""
    values = np.asarray(image).astype(np.float64)  # (H, W)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # NaN fails too
        raise InputError(f"its pixels are {values.min():g}..{values.max():g}, not 0..{white:g}: no white is known")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
