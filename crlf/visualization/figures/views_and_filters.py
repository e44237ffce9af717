"""Figures of the views that the network sees, and of the filters of its first layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from crlf.errors import InputError
from crlf.runs.run import ENCODER, VIEWS, Run
from crlf.visualization.figures.run_arrays import NotDrawn, needed
from crlf.visualization.figures.style import sheet, styled, tag


@styled()
def views(run: Run, images: int = 10, most: int = 8) -> Figure:
    """A grid: a column an image, the original on top, below it the views that the network saw."""
    tiles = needed(run, VIEWS)  # uint8 (n, 1 + V, C, h, w)
    if tiles.ndim != 5 or tiles.dtype != np.uint8 or 0 in tiles.shape:
        raise InputError(f"{VIEWS} must be uint8 (n, 1 + V, C, h, w), not {tiles.dtype} {tiles.shape}")
    recipe, V = run.settings, tiles.shape[1] - 1
    tiles = tiles[:images, : 1 + most]
    n, rows, _, h, w = tiles.shape
    shown = f"{V} views" if rows == 1 + V else f"{rows - 1} of {V:,} views"
    title = f"Views as the network sees them: {shown} of each of {n} images, {h} × {w} pixels"
    figure = sheet((8, 0.9 + 7.4 / max(n, 5) * rows * h / w), title, f"{drawn(recipe)} {tag(recipe)}")
    axes = figure.subplots()
    gap = max(1, w // 16)
    axes.imshow(mosaic(tiles, gap), interpolation="nearest" if w < 100 else None)
    axes.set_xticks([])
    axes.set_yticks(
        [(h - 1) / 2 + i * (h + gap) for i in range(rows)], ["original", *(f"view {i}" for i in range(1, rows))]
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def mosaic(tiles: np.ndarray, gap: int) -> np.ndarray:
    """uint8 (n, rows, C, h, w) -> (rows (h + gap) - gap, n (w + gap) - gap, 3), white between the tiles."""
    n, rows, C, h, w = tiles.shape
    rgb = tiles[:, :, :3] if C >= 3 else np.repeat(tiles[:, :, :1], 3, axis=2)
    padded = np.pad(rgb, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    return padded.transpose(1, 3, 0, 4, 2).reshape(rows * (h + gap), n * (w + gap), 3)[:-gap, :-gap]


def drawn(recipe: dict[str, Any]) -> str:
    """The settings of a view, in words."""
    settings = recipe.get("augmentation") or {}
    words = [f"crop of at least {100 * settings['crop_min']:g} % of the area"] if "crop_min" in settings else []
    for key, word in (("flip", "flip"), ("jitter", "colour jitter"), ("grayscale", "grayscale"), ("blur", "blur")):
        if settings.get(key):
            words.append(f"{word} {100 * settings[key]:g} %")
    if local := settings.get("local_views"):
        areas = f"{100 * settings['local_crop_min']:g} to {100 * settings['local_crop_max']:g} %"
        words.append(f"the last {local} smaller, of {areas} of the area")
    return f"Each view is drawn at random: {', '.join(words)}." if words else ""


@styled()
def filters(run: Run, most: int = 64) -> Figure:
    """The encoder's first layer: each filter as the picture that it answers to most."""
    tiles = first_filters(run)
    shown, (N, _, h, w) = tiles[:most], tiles.shape
    across = min(16, len(shown))
    count = f"{N}" if most >= N else f"{most} of {N:,}"
    title = f"First layer: {count} filters of {h} × {w} pixels"
    caption = "Gray is zero; each filter is scaled by its own largest weight. "
    rows = -(-len(shown) // across)
    figure = sheet((8, 0.9 + 7.4 / max(across, 5) * rows), title, caption + tag(run.settings))
    axes = figure.subplots()
    axes.imshow(filter_grid(shown, across), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def first_filters(run: Run) -> np.ndarray:
    """The first convolution of the encoder that reads images, as pictures: uint8 (n, C, h, w), 128 where it is 0.

    Raises:
        NotDrawn: the encoder is not there, or begins otherwise.
    """
    if not run.file(ENCODER).exists():
        raise NotDrawn(f"{str(run.file(ENCODER))!r} is missing: `crlf pretrain` makes it")
    weights = run.tensors(ENCODER).values()
    found = [w for w in weights if w.ndim == 4 and w.shape[1] in (1, 3, 4) and min(w.shape[2:]) > 1]
    if not found:
        raise NotDrawn("the encoder does not begin with a convolution")
    first = found[0].float().numpy()
    largest = np.abs(first).max(axis=(1, 2, 3), keepdims=True)
    return np.round(128 + 127 * first / np.maximum(largest, 1e-12)).astype(np.uint8)


def filter_grid(tiles: np.ndarray, across: int) -> np.ndarray:
    """uint8 (n, C, h, w) -> (H, W, 3), `across` tiles in a row, white between them and where there are none."""
    n, C, h, w = tiles.shape
    rows = -(-n // across)
    full = np.full((rows * across, C, h, w), 255, dtype=np.uint8)
    full[:n] = tiles
    return mosaic(full.reshape(rows, across, C, h, w).transpose(1, 0, 2, 3, 4), gap=1)
