"""Images given from Python: an `ImageSet`, or an array, in place of a name or a path.

A run keeps every setting as plain values, and so not the images: what needs them again is given them again.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from crlf.data.files.arrays import three_channels
from crlf.data.files.class_folders import share_of
from crlf.data.files.folder import ImageSettings
from crlf.data.image_set import ImageSet
from crlf.data.memmap import tensor
from crlf.data.stream import scaled
from crlf.errors import InputError

Given: TypeAlias = ImageSet | np.ndarray | torch.Tensor
NAME = re.compile(r"array of [\d,]+ images of \d+×\d+×\d+")


def name_of(images: ImageSet) -> str:
    """What a recipe calls them."""
    return f"array of {len(images):,} images of {'×'.join(map(str, images.images.shape[1:]))}"


def is_given(data: str) -> bool:
    """Whether a recipe's data are such."""
    return NAME.fullmatch(data) is not None


def image_set(data: Given, settings: ImageSettings | None = None, split: str = "train") -> ImageSet:
    """The given images as an `ImageSet`.

    Args:
        data: an `ImageSet`, or an array in the form of a .npy file: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with
            C of 1, 3 or 4, which becomes (N, 3, H, W).
        settings: images are resized to its `image_size`.
        split: prefix of the ids of an array.

    Raises:
        InputError: `data` is neither, or has the wrong shape or dtype.
    """
    if isinstance(data, torch.Tensor):
        data = data.cpu().numpy()
    if isinstance(data, np.ndarray):
        images = tensor(three_channels(data, Path("data")))
        data = ImageSet(images, None, (), tuple(f"{split}/{row:05}" for row in range(len(images))))
    if not isinstance(data, ImageSet):
        rule = f"an ImageSet or an array of images, not a {type(data).__name__}"
        raise InputError(f"data must be {rule}: names and paths go into the recipe")
    side = settings.image_size if settings else 0
    if not side or data.images.shape[2:] == (side, side):
        return data
    if data.images.shape[1] != 3:
        raise InputError(f"image_size scales images of 3 channels, not of {data.images.shape[1]}")
    return replace(data, images=torch.from_numpy(scaled(data.decoded.numpy(), side)), mapped=None)


def both(
    data: Given | tuple[Given, Given], settings: ImageSettings, subset: int, learned: bool = False
) -> tuple[ImageSet, ImageSet]:
    """The given training and test images. A single set serves as both if its labels are to be cross-validated; else
    there are no test images.

    Args:
        learned: whether the encoder was trained on the labels, so that they cannot test it.
    """
    if isinstance(data, tuple):
        train, test = image_set(data[0], settings), image_set(data[1], settings, "test")
    else:
        train = image_set(data, settings).first(subset)
        if train.labels is not None and not learned and not share_of(settings.hold_out, len(train)):
            return train, train
        test = replace(train, images=train.images[:0], labels=None, ids=train.ids[:0], mapped=None)
    return train.first(subset), test.first(subset)


def refusal(data: str) -> InputError:
    """The error if images are needed that were given earlier and not stored."""
    return InputError(f"{data!r} was given as an array and not stored: give it again, as crlf.embed(run, data=images)")
