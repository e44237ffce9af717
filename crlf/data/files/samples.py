"""The numbers of a picture whatever their depth, and how they become 8 bits on white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from crlf.errors import InputError

DEPTHS = (8, 10, 12, 14, 16)  # bits of what cameras and scanners give


@dataclass(frozen=True, eq=False)
class Samples:
    """The numbers of a picture, as its file holds them."""

    values: np.ndarray
    """(H, W, S): S is 1 for gray, 3 for RGB, 4 for CMYK, and one more where there is opacity, which is last."""
    bits: int
    """That a whole number fills; of fractions no matter."""
    alpha: str = ""
    """"straight", or "premultiplied" where the colours lie on black already; empty where there is no opacity."""
    inverted: bool = False
    """Whether 0 is white."""

    @property
    def peak(self) -> int:
        """The largest number, of whole numbers of 16 bits or more; 0 of others, which say what is white."""
        colours = self.values[..., :-1] if self.alpha else self.values
        deep = self.bits >= 16 and colours.dtype.kind in "iu"
        return max(0, int(colours.max())) if deep else 0


def picture(found: Samples, white: int = 0) -> Image.Image:
    """The picture in RGB, of 8 bits, on white.

    Args:
        white: the number that is white, where it has 16 bits or more; brighter ones are white as well. 0 for the
            largest that it has bits for.

    Raises:
        InputError: no white is known.
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
    """uint8 (H, W, S) of gray, RGB or CMYK."""
    if shown.shape[2] == 4:
        height, width = shown.shape[:2]
        return Image.frombytes("CMYK", (width, height), np.ascontiguousarray(shown).tobytes()).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(shown if shown.shape[2] == 3 else shown.repeat(3, axis=2)))


def on_white(image: Image.Image, opacity: np.ndarray, premultiplied: bool = False) -> Image.Image:
    """An RGB image on white; opacity: 0..1, (H, W, 1)."""
    colours = np.asarray(image).astype(np.float32)
    seen = colours if premultiplied else colours * opacity
    return Image.fromarray(np.rint(np.clip(seen + 255 * (1 - opacity), 0, 255)).astype(np.uint8))


def fractions(opacity: np.ndarray, bits: int) -> np.ndarray:
    """Opacity as 0..1."""
    whole = opacity.dtype.kind in "iub"
    return np.clip(np.nan_to_num(opacity.astype(np.float32)) / (full(opacity.dtype, bits) if whole else 1), 0, 1)


def full(kind: np.dtype, bits: int) -> int:
    """The largest number of so many bits."""
    return 2 ** (bits - 1) - 1 if kind.kind == "i" else 2**bits - 1


def eight_bits(values: np.ndarray, bits: int, white: int = 0) -> np.ndarray:
    """Numbers of any kind as uint8, black at 0.

    Whole numbers of fewer than 16 bits, such as 8 or 12, are white at the largest there is; of 16 bits at `white`, if
    that is given, which many cameras' fewer bits do not reach; of 32 and more at `white`, or at 65535 if none is
    larger. Fractions are white at 1, or, where one is larger, at `white`.

    Raises:
        InputError: none of this fits.
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
    """The number that is white."""
    if kind.kind == "f":
        return white if white and high > 1 else 1.0
    if bits > 16:
        return white or 65535
    return min(white, full(kind, bits)) if white and bits == 16 else full(kind, bits)


def white_of(peak: int) -> int:
    """The number that is white in a set whose brightest number this is: as many bits of `DEPTHS` as it needs.

    0 where it needs more: then none is known.
    """
    return next((2**bits - 1 for bits in DEPTHS if peak < 2**bits), 0)
