"""Labelled images for fine-tuning, and images to score on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crlf.data import SOURCES, ImageSet, load, named
from crlf.data.files.class_folders import HELD_OUT
from crlf.data.files.folder import ImageSettings
from crlf.data.files.layout import layout
from crlf.errors import InputError
from crlf.recipe import Recipe

ADVICE = "its images must be in one folder per class, or in a table with a label column"


class Labelled(NamedTuple):
    """Images with labels, which are indices into `classes`."""

    train: Tensor
    """uint8 (N, C, H, W)."""
    train_labels: np.ndarray
    """int64 (N,)."""
    test: Tensor
    """uint8 (M, C, H, W)."""
    test_labels: np.ndarray
    """int64 (M,)."""
    classes: tuple[str, ...]
    how: str
    """A description of the test images, for the protocol."""


def settings_of(recipe: Recipe, data: str) -> ImageSettings:
    """The image settings of a run, without those that belong to the run's own data."""
    own = data == recipe.data
    return recipe.images if own else replace(recipe.images, image_column="", label_column="", hold_out=-1.0)


def share_of(test: str | None, settings: ImageSettings) -> float:
    """The share of the images held out to score on; 0 if there are other test images."""
    return 0.0 if test is not None else settings.hold_out if settings.hold_out > 0 else HELD_OUT


def read(
    data: str,
    test: str | None,
    shape: tuple[int, int, int],
    settings: ImageSettings,
    data_dir: str | Path | None = None,
) -> Labelled:
    """Read labelled images in the shape that an encoder expects.

    Args:
        data: the training images, with labels: anything that `crlf pretrain` accepts.
        test: the images to score on, of the same classes: the test split if there is one, else all. By default the test
            split of `data`, or if it has none a tenth, which is held out.
        shape: (C, H, W) of the images that the encoder was trained on; files are resized to it.
        settings: how files are read.
        data_dir: the folder of the named data sets.

    Raises:
        InputError: the images do not exist, have no labels or another shape, `test` has a class that `data` lacks, or
            nothing is left to test on.
    """
    train, held = opened(data, shape, settings, data_dir, share_of(test, settings))
    if train.labels is None and test is not None:
        train = by_folders(train, data)
    if train.labels is None:
        raise InputError(f"data {data!r} has no labels{' that can be used' * bool(train.why)}: {train.why or ADVICE}")
    if test is None:
        if not len(held) or held.labels is None:
            raise InputError(f"data {data!r} has no images to test on: name others with --test")
        how = "its own test images" if train.hold_out < 0 else "images of it that were held out"
        return Labelled(train.decoded, train.labels.numpy(), held.decoded, held.labels.numpy(), train.classes, how)
    learned, asked = opened(test, shape, settings, data_dir, 0.0)
    images, labels = with_labels(asked if len(asked) else learned, test)  # the test split, if there is one
    places = {name: place for place, name in enumerate(train.classes)}
    if strange := sorted(set(labels) - set(places)):
        raise InputError(f"test {test!r} has the class {strange[0]!r}, which {data!r} lacks")
    targets = np.array([places[name] for name in labels], dtype=np.int64)
    return Labelled(train.decoded, train.labels.numpy(), images, targets, train.classes, f"the images of {test!r}")


def first(
    data: str,
    test: str | None,
    shape: tuple[int, int, int],
    settings: ImageSettings,
    data_dir: str | Path | None,
    count: int,
) -> Tensor:
    """The first training images that `read` returns: uint8 (N, C, H, W), N at most `count`."""
    return opened(data, shape, settings, data_dir, share_of(test, settings))[0].first(count).decoded


def opened(
    data: str, shape: tuple[int, int, int], settings: ImageSettings, data_dir: str | Path | None, hold_out: float
) -> tuple[ImageSet, ImageSet]:
    """The training and test images of a source in this shape; `hold_out` as in `ImageSettings`."""
    own = named(data) not in SOURCES
    read_as = replace(settings, image_size=shape[1], labels=True, hold_out=hold_out) if own else None
    train, test = load(data, data_dir, read_as)
    found = tuple(train.images.shape[1:])
    if found != shape:
        raise InputError(f"images of {data!r} must be {size(shape)} like those of the run, not {size(found)}")
    return train, test


def size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def by_folders(part: ImageSet, data: str) -> ImageSet:
    """Label images by their folders, even if a class has too few images to hold some out: others are tested."""
    folders = layout(part.ids).folders if os.path.isdir(os.path.expanduser(data)) else [""]
    if "" in folders or not len(part):
        return part
    classes = sorted(set(folders))
    labels = torch.tensor([classes.index(folder) for folder in folders], dtype=torch.int64)
    return replace(part, labels=labels, classes=tuple(classes))


def with_labels(part: ImageSet, data: str) -> tuple[Tensor, list[str]]:
    """The images, and the class name of each."""
    found = by_folders(part, data) if part.labels is None else part
    if found.labels is not None:
        return found.decoded, [found.classes[label] for label in found.labels.tolist()]
    names = [name.partition("/")[0] for name in part.ids]  # a single class: one folder holds all images
    if not os.path.isdir(os.path.expanduser(data)) or not all("/" in name for name in part.ids):
        raise InputError(f"test {data!r} has no labels: {ADVICE}")
    return part.decoded, names


def some(labels: np.ndarray, classes: Sequence[str], per_class: int, fraction: float, seed: int) -> np.ndarray:
    """Draw training rows class by class, at least one of each: int64 (n,), ascending.

    Args:
        labels: int64 (N,).
        classes: the class names.
        per_class: rows of each class; 0 for all, or for a `fraction`.
        fraction: share of each class.
        seed: seed of the draw.

    Raises:
        InputError: a class has fewer images than `per_class`.
    """
    if per_class and fraction < 1:
        raise InputError("labels_per_class and fraction cannot be combined: give one of them")
    random, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if per_class > len(rows):
            rule = f"at most the {len(rows)} images of class {classes[label]!r}"
            raise InputError(f"labels_per_class must be {rule}, not {per_class}")
        chosen.append(rows[: per_class or max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def chance(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """The accuracy of always predicting the most frequent training class: int (N,), int (M,) -> 0..1. If several
    classes are equally frequent, the mean over them."""
    labels, counts = np.unique(train_labels, return_counts=True)
    most = labels[counts == counts.max()]
    return float(np.isin(test_labels, most).mean() / len(most))
