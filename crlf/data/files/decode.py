"""Decodes an image file of any of the `FORMATS` into a square RGB image, upright.

The shorter side is scaled to the given size with antialiasing (Pillow's bicubic filter, which widens when it shrinks),
and the centre of the longer side is kept. So nothing is stretched, and most photographs have their subject in the
centre. Colour profiles are not applied.
"""

from __future__ import annotations

import importlib.util
import io
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from crlf.data.files import png, tiff
from crlf.data.files.samples import Samples, eight_bits, on_white, picture
from crlf.errors import InputError, first_line

PILLOW = 178_956_970  # pixels above which Pillow refuses an image as a decompression bomb
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"),
    *(".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k"),
)  # the usual suffixes of image files
KINDS = "JPEG, PNG, WebP, TIFF, GIF, BMP, AVIF, HEIC, JPEG XL or JPEG 2000"
HEAD = 32  # bytes from which the kind of a file is recognised
JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # makes an image with this EXIF orientation upright
ORIENTATION = 0x0112  # EXIF tag


def formats() -> tuple[str, ...]:
    """The formats that Pillow may read; HEIC only if pillow-heif is installed."""
    plain = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF")
    if importlib.util.find_spec("pillow_heif") is None:
        return plain
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*plain, "HEIF")


FORMATS = formats()


class NoImage(InputError):
    """The first bytes of a file are not those of an image."""


def kind_of(head: bytes) -> str:
    """The kind of a file by its first bytes, such as "PNG"; empty if it is not an image."""
    if tiff.is_tiff(head):
        return "TIFF"
    if head.startswith(JXL):
        return "JPEG XL"
    if head.startswith(JP2):
        return "JPEG 2000"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return "HEIC"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    starts = {b"\xff\xd8\xff": "JPEG", png.SIGNATURE: "PNG", b"GIF8": "GIF", b"BM": "BMP"}
    return next((kind for start, kind in starts.items() if head.startswith(start)), "")


def image_size(file: IO[bytes], max_pixels: int = PILLOW) -> tuple[int, int]:
    """Width and height of the image in an open file, in pixels. For most formats only the header is read.

    Raises:
        InputError: as `open_image`.
    """
    head = file.read(HEAD)
    file.seek(0)
    if tiff.is_tiff(head):
        width, height = tiff.size(file.read())
    elif kind_of(head) == "JPEG XL":
        height, width = jpeg_xl(file.read()).values.shape[:2]
    else:
        return open_image(file, max_pixels).size
    require_pixels(width, height, max_pixels)
    return width, height


def open_image(file: IO[bytes], max_pixels: int = PILLOW) -> Image.Image:
    """Open the image in a file that is neither TIFF nor JPEG XL; of an animation, the first frame.

    Only the header is read.

    Raises:
        InputError: the file is not an image (`NoImage`), or has too many pixels. The message gives only the reason.
    """
    kind = kind_of(file.read(HEAD))
    file.seek(0)
    try:
        image = opened(file, kind)
    except Image.DecompressionBombError as error:
        raise InputError(f"it has more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise unidentified(kind) from error
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged headers
        raise InputError(f"it is damaged: {first_line(error)}") from error
    require_pixels(*image.size, max_pixels)
    return image


def opened(file: IO[bytes], kind: str) -> Image.Image:
    """Open an image with Pillow; a PNG with damaged texts or profiles is opened without them."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise
    except Exception:
        if kind != "PNG":
            raise
        file.seek(0)
        return Image.open(io.BytesIO(png.essential(file.read())), formats=FORMATS)


def unidentified(kind: str) -> InputError:
    if not kind:
        return NoImage(f"it is no {KINDS}")
    if kind == "HEIC" and "HEIF" not in FORMATS:
        return InputError("it is HEIC, which needs pillow-heif: pip install 'crlf[heif]'")
    return InputError(f"it is a damaged {kind}")


def require_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(f"it has {width:,} × {height:,} pixels, more than {max_pixels:,}")
    if not width * height:
        raise InputError("it has no pixels")


def decode(data: bytes, side: int, max_pixels: int = PILLOW, white: int = 0) -> np.ndarray:
    """Decode the bytes of an image file: uint8 (3, side, side).

    Args:
        data: the bytes of the file.
        side: height and width of the result, in pixels.
        max_pixels: an image with more pixels is refused.
        white: the value of white in a file of 16 bits or more; 0 for the largest possible value.

    Raises:
        InputError: as `open_image`, or the file is empty or damaged, or no value is known to be white. The message
            gives only the reason.
    """
    found, orientation = read(data, side, max_pixels)
    try:
        image = picture(found, white) if isinstance(found, Samples) else rgb(found, white)
        return square(turned(image, orientation), side)
    except InputError:
        raise
    except Exception as error:  # damaged pixels raise many kinds of exceptions
        raise InputError(f"it is damaged: {first_line(error)}") from error


def peak(data: bytes, max_pixels: int = PILLOW) -> int:
    """The largest value in a file of integers of 16 bits or more; 0 for any other file, and for a damaged one.

    Other files are not decoded.
    """
    if not (png.deep(data[:HEAD]) or kind_of(data[:HEAD]) in ("TIFF", "JPEG 2000")):
        return 0
    try:
        found, _ = read(data, 0, max_pixels)
        if isinstance(found, Samples):
            return found.peak
        return int(np.asarray(found).max()) if found.mode.startswith("I") else 0
    except Exception:  # decoding reports the reason
        return 0


def read(data: bytes, side: int, max_pixels: int) -> tuple[Samples | Image.Image, int]:
    """Read a file with the library that reads its format correctly; returns the image and its EXIF orientation."""
    if not data:
        raise NoImage("it is empty")
    kind = kind_of(data[:HEAD])
    if kind == "TIFF":
        return tiff.read(data, max_pixels)
    if kind == "JPEG XL":
        found = jpeg_xl(data)
        require_pixels(found.values.shape[1], found.values.shape[0], max_pixels)
        return found, 1
    data = png.essential(data) if kind == "PNG" else data
    image = open_image(io.BytesIO(data), max_pixels)
    try:
        # A JPEG decodes at 1/2, 1/4 or 1/8 of its size in a fraction of the time; at twice the size or more, the
        # antialiasing is left to the resize below.
        if side:
            image.draft(None, (2 * side, 2 * side))
        image.load()
        numbers = png.samples(data) if kind == "PNG" else None
        return numbers or image, orientation_of(image)
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged pixels
        raise InputError(f"it is damaged: {first_line(error)}") from error


def jpeg_xl(data: bytes) -> Samples:
    """Decode a JPEG XL file; the result is upright.

    Raises:
        InputError: imagecodecs is not installed, or the file is damaged. The message gives only the reason.
    """
    if importlib.util.find_spec("imagecodecs") is None:
        raise InputError("it is JPEG XL, which needs imagecodecs: pip install 'crlf[tiff]'")
    import imagecodecs

    try:
        values = imagecodecs.jpegxl_decode(data)
    except Exception as error:
        raise InputError(f"it is a damaged JPEG XL: {first_line(error)}") from error
    values = values[0] if values.ndim == 4 else values  # the first frame
    values = values[..., None] if values.ndim == 2 else values  # (H, W, S)
    return Samples(values, 8 * values.dtype.itemsize, "straight" if values.shape[2] in (2, 4) else "")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1, which is upright, if EXIF is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # phones and editors often write bad EXIF beside good pixels
        return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image with this EXIF orientation, turned upright."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image, turned upright by its EXIF; unchanged if EXIF is damaged."""
    return turned(image, orientation_of(image))


def square(image: Image.Image, side: int) -> np.ndarray:
    """Scale an RGB image and crop its centre: uint8 (3, side, side)."""
    fitted = ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def rgb(image: Image.Image, white: int = 0) -> Image.Image:
    """Convert an image to 8-bit RGB; transparent pixels are drawn on white.

    Raises:
        InputError: 32-bit pixels lie neither in 0..65535 nor in 0..1, and no white is given.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)  # (H, W)
        values = values.astype(np.int64) if values.dtype.kind == "i" else values
        bits = 16 if image.mode.startswith("I;16") else 32
        return Image.fromarray(eight_bits(values.astype(values.dtype.newbyteorder("=")), bits, white)).convert("RGB")
    if image.mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        shown = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert shown is not None, "profileToProfile returns a new image unless inPlace is set"
        return shown
    if image.mode in ("La", "RGBa"):
        bands = image.split()
        colours = Image.merge("RGB", bands[:3]) if len(bands) == 4 else bands[0].convert("RGB")
        return on_white(colours, np.asarray(bands[-1])[..., None].astype(np.float32) / 255, premultiplied=True)
    if "A" in image.getbands() or "transparency" in image.info:
        colours = image.convert("RGBA")
        on = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(on, colours).convert("RGB")
    return image.convert("RGB")
