"""Converts pixel values of any bit depth to 8-bit RGB, with transparent pixels on white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from crlf.errors import InputError

DEPTHS = (8, 10, 12, 14, 16)  # bits per value of cameras and scanners


@dataclass(frozen=True, eq=False)
class Samples:
    """The pixel values of a picture, as they are in its file."""

    values: np.ndarray
    """(H, W, S), where S is 1 for gray, 3 for RGB and 4 for CMYK, plus 1 if opacity follows as the last channel."""
    bits: int
    """The bits of an integer value; ignored for floating-point values."""
    alpha: str = ""
    """"straight", or "premultiplied" if the colours are multiplied by the opacity; empty without opacity."""
    inverted: bool = False
    """Whether 0 is white."""

    @property
    def peak(self) -> int:
        """The largest value, for integers of 16 bits or more; 0 for others, whose white is known."""
        colours = self.values[..., :-1] if self.alpha else self.values
        deep = self.bits >= 16 and colours.dtype.kind in "iu"
        return max(0, int(colours.max())) if deep else 0


def picture(found: Samples, white: int = 0) -> Image.Image:
    """The picture in 8-bit RGB, with transparent pixels on white.

    Args:
        white: the value of white for integers of 16 bits or more; larger values are white as well. 0 for the largest
            possible value.

    Raises:
        InputError: the value of white is not known.
    """
    colours = found.values[..., :-1] if found.alpha else found.values
    shown = eight_bits(colours, found.bits, white)
    if found.inverted:
        shown = 255 - shown
    image = in_rgb(shown)
    if not found.alpha:
        return image
    return on_white(image, fractions(found.values[..., -1:], found.bits), found.alpha == "premultiplied")


def in_rgb(shown: np.ndarray) -> Image.Image:
    """Convert uint8 (H, W, S) in gray, RGB or CMYK to an RGB image."""
    if shown.shape[2] == 4:
        height, width = shown.shape[:2]
        return Image.frombytes("CMYK", (width, height), np.ascontiguousarray(shown).tobytes()).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(shown if shown.shape[2] == 3 else shown.repeat(3, axis=2)))


def on_white(image: Image.Image, opacity: np.ndarray, premultiplied: bool = False) -> Image.Image:
    """Draw an RGB image on white, with an opacity in 0..1, float (H, W, 1)."""
    colours = np.asarray(image).astype(np.float32)
    seen = colours if premultiplied else colours * opacity
    return Image.fromarray(np.rint(np.clip(seen + 255 * (1 - opacity), 0, 255)).astype(np.uint8))


def fractions(opacity: np.ndarray, bits: int) -> np.ndarray:
    """Opacity as float32 in 0..1."""
    whole = opacity.dtype.kind in "iub"
    return np.clip(np.nan_to_num(opacity.astype(np.float32)) / (full(opacity.dtype, bits) if whole else 1), 0, 1)


def full(kind: np.dtype, bits: int) -> int:
    """The largest integer with this many bits."""
    return 2 ** (bits - 1) - 1 if kind.kind == "i" else 2**bits - 1


def eight_bits(values: np.ndarray, bits: int, white: int = 0) -> np.ndarray:
    """Convert values of any type to uint8, with black at 0.

    White is the largest possible value for integers of fewer than 16 bits, and `white` for 16 bits, if it is given,
    since many cameras use fewer bits. For integers of more bits it is `white`, or 65535 if no value is larger; for
    floating-point values it is 1, or `white` if a value is larger than 1.

    Raises:
        InputError: the values fit none of these.
    """
    if values.dtype == np.uint8 and bits == 8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = values.min(), values.max()
    top = level(values.dtype, bits, white, float(high))
    if not (low >= 0 and (high <= top or (white and np.isfinite(high)))):  # NaN fails too
        raise InputError(f"its pixels are {low:g}..{high:g}, not 0..{top:g}: no white is known")
    precise = np.float64 if bits > 16 else np.float32
    return np.rint(np.minimum(values, top).astype(precise) * precise(255 / top)).astype(np.uint8)


def level(kind: np.dtype, bits: int, white: int, high: float) -> float:
    """The value of white."""
    if kind.kind == "f":
        return white if white and high > 1 else 1.0
    if bits > 16:
        return white or 65535
    return min(white, full(kind, bits)) if white and bits == 16 else full(kind, bits)


def white_of(peak: int) -> int:
    """The value of white in a set with this largest value: the maximum of the smallest of `DEPTHS` that holds it.

    0 if it needs more bits: then white is not known.
    """
    return next((2**bits - 1 for bits in DEPTHS if peak < 2**bits), 0)
