"""Corrupts images at five strengths with noise, blur, low contrast and JPEG, as in CIFAR-10-C.

Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions and perturbations. Formulas
and strengths are those of their `make_cifar_c.py` for 32 px (gaussian_noise, gaussian_blur, contrast,
jpeg_compression). They are the same at other sizes, although larger images would need more blur for the same effect.

An entry of `CORRUPTIONS` maps uint8 (n, C, H, W) and a strength in 1..5 to images of the same shape, deterministically.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

STRENGTHS = (1, 2, 3, 4, 5)
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, of a range of 1
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation, pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor on the distance from the image's mean colour
QUALITY = (80, 65, 58, 50, 40)  # JPEG quality


def noise(images: np.ndarray, strength: int) -> np.ndarray:
    """Independent Gaussian noise in each pixel and channel."""
    random = np.random.default_rng(strength)
    return as_bytes(as_floats(images) + NOISE[strength - 1] * random.standard_normal(images.shape, dtype=np.float32))


def blur(images: np.ndarray, strength: int) -> np.ndarray:
    """Gaussian blur; pixels at the border are repeated beyond it."""
    sigma = BLUR[strength - 1]
    return as_bytes(gaussian_filter(as_floats(images), (0, 0, sigma, sigma), mode="nearest"))


def contrast(images: np.ndarray, strength: int) -> np.ndarray:
    """Lower contrast: each pixel moves towards the image's mean colour."""
    x = as_floats(images)
    means = x.mean(axis=(2, 3), keepdims=True)
    return as_bytes((x - means) * CONTRAST[strength - 1] + means)


def jpeg(images: np.ndarray, strength: int) -> np.ndarray:
    """JPEG compression; images with other than 1 or 3 channels are compressed channel by channel."""
    if images.shape[1] in (1, 3):
        return np.stack([through_jpeg(image, QUALITY[strength - 1]) for image in images])
    apart = [jpeg(images[:, [c]], strength) for c in range(images.shape[1])]
    return np.concatenate(apart, axis=1)


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (1 or 3, H, W) -> the same."""
    rows = np.ascontiguousarray(image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(rows[:, :, 0] if len(image) == 1 else rows).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded).reshape(rows.shape).transpose(2, 0, 1)


def as_floats(images: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in 0..1."""
    return images.astype(np.float32) / 255


def as_bytes(images: np.ndarray) -> np.ndarray:
    """float, clipped to 0..1 -> uint8; truncated, not rounded, as in CIFAR-10-C."""
    return (images.clip(0, 1) * 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
}
