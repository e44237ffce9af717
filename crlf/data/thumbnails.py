"""Small pictures of the images that a run is shown by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from crlf.data.encoded import Pixels

MOST = 10_000  # pictures
SIDES = (64, 48, 32)  # pixels of the longer side, the first with which all pictures have at most PIXELS
PIXELS = 12.5e6


def sample(N: int, most: int = MOST) -> np.ndarray:
    """Which of N rows are shown, in random order: int64 (at most `most`,). A smaller sample begins a larger one."""
    return np.random.default_rng(0).permutation(N)[:most]


def thumbnails(images: Pixels | np.ndarray) -> Iterator[np.ndarray]:
    """Pictures of `sample(N)`, in its order: uint8 (N, C, H, W) -> n times uint8 (h, w, 3). Small ones stay so.

    No more than 38 MB: 10,000 of 32 pixels a side, or 3,000 of 64.
    """
    rows = sample(len(images))
    most = next((side for side in SIDES if len(rows) * side**2 <= PIXELS), SIDES[-1])
    return (thumbnail(np.asarray(images[int(row)]), most) for row in rows)


def thumbnail(image: np.ndarray, most: int) -> np.ndarray:
    """uint8 (C, H, W) -> uint8 (h, w, 3), the longer side at most `most` pixels; one channel becomes gray."""
    C, H, W = image.shape
    rgb = (image[:3] if C >= 3 else image[:1].repeat(3, axis=0)).transpose(1, 2, 0)
    share = min(1.0, most / max(H, W))
    if share == 1:
        return rgb
    size = max(1, round(W * share)), max(1, round(H * share))
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.LANCZOS))
