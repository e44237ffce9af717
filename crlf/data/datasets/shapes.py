"""Shapes: small generated images, for first tries and for tests without a network.

A class is a shape; its place, size, tilt, two colours and the noise are nuisances, larger in pixels than the shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crlf.data.image_set import ImageSet
from crlf.normalisation import Normalisation

TRAIN, TEST, SIZE = 2000, 500, 32
# As `crlf.normalisation.measured` finds them on the training images.
NORMALISATION = Normalisation(mean=(0.4962, 0.4891, 0.5056), std=(0.2984, 0.2975, 0.2974))

# Each is true inside the shape; u and v are coordinates in its own frame, in which it spans about -1..1.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: np.hypot(u, v) < 1,
    "ring": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.6),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.9,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * abs(u) - 1),
    "stripes": lambda u, v: (np.sin(8 * u) > 0) & (np.maximum(abs(u), abs(v)) < 1),
    "checks": lambda u, v: (np.sin(6 * u) * np.sin(6 * v) > 0) & (np.maximum(abs(u), abs(v)) < 1),
    "dots": lambda u, v: (np.cos(6 * u) * np.cos(6 * v) > 0.5) & (np.maximum(abs(u), abs(v)) < 1.1),
}


def load(data_dir: str | Path | None = None) -> tuple[ImageSet, ImageSet]:
    """2,000 training and 500 test images, uint8 (N, 3, 32, 32), of 8 classes; always the same. `data_dir` is unused."""
    return draw_set("train", TRAIN, seed=0), draw_set("test", TEST, seed=1)


@functools.cache
def draw_set(name: str, count: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    labels = random.integers(len(SHAPES), size=count)
    shapes = list(SHAPES.values())
    images = np.stack([draw_shape(shapes[label], random) for label in labels])
    ids = tuple(f"{name}/{i:05}" for i in range(count))
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), tuple(SHAPES), ids)


def draw_shape(shape: Callable[[np.ndarray, np.ndarray], np.ndarray], random: np.random.Generator) -> np.ndarray:
    """One image: uint8 (3, 32, 32)."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5  # pixels
    radius = random.uniform(8, 13)
    tilt = random.uniform(-0.4, 0.4)  # radians
    dx, dy = random.uniform(-4, 4, 2)
    u = ((x - dx) * np.cos(tilt) + (y - dy) * np.sin(tilt)) / radius
    v = ((y - dy) * np.cos(tilt) - (x - dx) * np.sin(tilt)) / radius
    front, back = random.uniform(0, 255, (2, 3, 1, 1))
    while abs(front - back).sum() < 120:
        front, back = random.uniform(0, 255, (2, 3, 1, 1))
    image = np.where(shape(u, v), front, back) + random.normal(0, 20, (3, SIZE, SIZE))
    return image.clip(0, 255).astype(np.uint8)
