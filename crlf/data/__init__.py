"""Sources of images by name. A source is one file here and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crlf.data import cifar, shapes
from crlf.data.cache import cache_dir
from crlf.data.imageset import ImageSet
from crlf.errors import unknown

__all__ = ["SOURCES", "ImageSet", "cache_dir", "load"]

SOURCES: dict[str, Callable[[str | Path | None], tuple[ImageSet, ImageSet]]] = {
    "cifar10": cifar.load,
    "shapes": shapes.load,
}


def load(name: str, data_dir: str | Path | None = None) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of a source.

    Args:
        name: one of `SOURCES`.
        data_dir: where the data set lies; by default the cache, which is filled if need be.

    Raises:
        InputError: no source has that name, or its data are missing, damaged or out of reach.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return SOURCES[name](data_dir)
