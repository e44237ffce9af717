"""Sources of images by name. A source is one file here and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from crlf.data import cifar, shapes, stl10, svhn
from crlf.data.cache import cache_dir
from crlf.data.imageset import ImageSet
from crlf.errors import unknown

__all__ = ["SOURCES", "ImageSet", "cache_dir", "load", "load_for_pretraining"]

SOURCES: dict[str, Callable[[str | Path | None], tuple[ImageSet, ImageSet]]] = {
    "cifar10": cifar.load,
    "cifar100": partial(cifar.load, spec=cifar.CIFAR100),
    "stl10": stl10.load,
    "svhn": svhn.load,
    "shapes": shapes.load,
}
UNLABELLED: dict[str, Callable[[str | Path | None], ImageSet]] = {
    "stl10": stl10.unlabelled,
}  # the sources with images that are there for pretraining alone


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


def load_for_pretraining(name: str, data_dir: str | Path | None = None) -> ImageSet:
    """The images of a source to learn from: its unlabelled ones if it has such, else its training images.

    Arguments and errors are those of `load`, whose training and test images stay for the probes.
    """
    return UNLABELLED[name](data_dir) if name in UNLABELLED else load(name, data_dir)[0]
