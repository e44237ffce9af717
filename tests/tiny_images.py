"""Small images, and the files that hold them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
WIDE = RANDOM.integers(0, 65536, (32, 32), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
