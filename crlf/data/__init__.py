"""Sources of images: named data sets, each with a file here and a line in `SOURCES`, or the path of your own images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from crlf.data import given
from crlf.data.cache import cache_dir
from crlf.data.datasets import cifar, shapes, stl10, svhn
from crlf.data.files import arrays, folder, huggingface, stores
from crlf.data.files.folder import ImageSettings
from crlf.data.image_set import ImageSet
from crlf.errors import InputError, unknown
from crlf.normalisation import Normalisation

__all__ = [
    "PUBLISHED", "SOURCES", "UNLABELLED_PART", "ImageSet", "ImageSettings", "cache_dir", "first_of", "load",
    "load_for_pretraining", "load_parts", "named", "of_files", "require_there",
]  # fmt: skip

SOURCES: dict[str, Callable[[str | Path | None], tuple[ImageSet, ImageSet]]] = {
    "cifar10": cifar.load,
    "cifar100": partial(cifar.load, spec=cifar.CIFAR100),
    "stl10": stl10.load,
    "svhn": svhn.load,
    "shapes": shapes.load,
}
PUBLISHED = {
    "cifar10": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)),
    "cifar100": Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "stl10": Normalisation(mean=(0.4409, 0.4279, 0.3868), std=(0.2683, 0.2610, 0.2687)),  # of all images
    "svhn": Normalisation(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
    "shapes": shapes.NORMALISATION,
}  # of the training images, from the literature; for other sources they are measured (crlf.normalisation)
UNLABELLED_PART = "unlabelled"  # of a folder
UNLABELLED: dict[str, Callable[[str | Path | None], ImageSet]] = {
    "stl10": stl10.unlabelled,
}  # sources with images for pretraining only


def named(data: str) -> str:
    """The name of data in a recipe: a name of `SOURCES`, hf:NAME, the absolute path of your own images, or a
    description of images given as arrays (crlf.data.given).

    Raises:
        InputError: `data` is none of these.
    """
    if data in SOURCES or given.is_given(data):
        return data
    if stores.is_remote(data):
        return data.rstrip("/")
    if data.startswith(huggingface.PREFIX):
        return huggingface.named(data)
    if not folder.is_path(data):
        known = [*SOURCES, "hf:NAME", "the path of a folder, a list, a table or an array of images"]
        raise unknown("data set", data, known)
    return os.path.abspath(os.path.expanduser(data))


def load(
    data: str, data_dir: str | Path | None = None, settings: ImageSettings | None = None, subset: int = 0
) -> tuple[ImageSet, ImageSet]:
    """Load the training and test images of a source; the same set twice if all are tested by cross-validation.

    Args:
        data: one of `SOURCES`, or the path of your own images (crlf.data.files.folder).
        data_dir: the folder of a named data set; by default the cache, to which it is downloaded if needed.
        settings: how your own images are read.
        subset: the first images only, at most this many for training and as many for testing; 0 for all.

    Raises:
        InputError: the source is not known, or its data are missing, damaged or cannot be downloaded.
    """
    data, settings = named(data), settings or ImageSettings()
    if given.is_given(data):
        raise given.refusal(data)
    if data not in SOURCES:
        if data_dir is not None:
            raise InputError(f"data_dir is for named data sets, but data is the path {data!r}")
        own = folder.load(data, settings, subset)
        return own.train, own.test
    refuse(settings, data)
    return first_of(*SOURCES[data](data_dir), subset)


def first_of(train: ImageSet, test: ImageSet, subset: int) -> tuple[ImageSet, ImageSet]:
    """The first `subset` images of both sets; one set for both stays one."""
    first = train.first(subset)
    return first, first if test is train else test.first(subset)


def load_parts(
    data: str, data_dir: str | Path | None = None, settings: ImageSettings | None = None, subset: int = 0
) -> dict[str, ImageSet]:
    """As `load`, returned by name: "train", "test" and, for a folder with unlabelled images beside labelled ones,
    "unlabelled". Arguments and errors are the same."""
    if data_dir is None and named(data) not in SOURCES and not given.is_given(data):
        own = folder.load(named(data), settings or ImageSettings(), subset)
        found = {"train": own.train, "test": own.test}
        if len(own.learn) == len(own.train):
            return found
        return found | {UNLABELLED_PART: own.learn.rows(slice(len(own.train), None))}
    return dict(zip(("train", "test"), load(data, data_dir, settings, subset), strict=True))


def of_files(data: str) -> bool:
    """Whether the images are your own files, in a folder, a list or a table, and not an array."""
    known = data in SOURCES or given.is_given(data)
    return not known and Path(data).suffix.lower() not in arrays.SUFFIXES


def require_there(data: str) -> None:
    """Raise InputError if the path of a run's images no longer exists."""
    if os.path.isabs(data) and not os.path.exists(data):
        raise InputError(f"data {data!r} does not exist: give the new path of the images with --data")


def refuse(settings: ImageSettings | None, data: str) -> None:
    """Raise InputError if image settings are given that a named data set ignores."""
    given = [f.name for f in dataclasses.fields(ImageSettings) if settings and getattr(settings, f.name) != f.default]
    if given:
        raise InputError(f"{given[0]} is for your own images, not for the data set {data!r}")


def load_for_pretraining(
    data: str, data_dir: str | Path | None = None, settings: ImageSettings | None = None, subset: int = 0
) -> ImageSet:
    """The images of a source to learn from: its unlabelled images if it has any, else its training images; for a folder
    with both, all of them.

    Arguments and errors are those of `load`; the probes use its training and test images.
    """
    if data_dir is None and named(data) not in SOURCES and not given.is_given(data):
        return folder.load(named(data), settings or ImageSettings(), subset).learn
    if data not in UNLABELLED:
        return load(data, data_dir, settings, subset)[0]
    refuse(settings, data)
    return UNLABELLED[data](data_dir).first(subset)
