"""Defaults that depend on the images: their domain sets how views may differ, their number and size set the training
(crlf.recipe.Recipe.for_images).

Defaults that may be replaced in this way are marked by `unasked`. Values from the user or from recipe.json are plain
numbers or strings, and stay.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T", int, float, str)


class Unasked:
    """The mark of a default value; marked values are also an int, a float or a str."""


class UnaskedInt(Unasked, int):
    """A default that is a whole number."""


class UnaskedFloat(Unasked, float):
    """A default that is a number."""


class UnaskedStr(Unasked, str):
    """A default that is a string."""


def unasked(value: T) -> T:
    """The value, marked as a default."""
    kind = {int: UnaskedInt, float: UnaskedFloat, str: UnaskedStr}[type(value)]
    return kind(value)


TURNED = {"vertical_flip": 0.5, "turn": 0.5}  # no preferred orientation
NO_COLOUR = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
OF_FILES: dict[str, Any] = {"batch_size": 64}  # recipe settings for your own image files
LARGEST = 64  # largest default image size in pixels
LARGE, OF_LARGE = 64, 0.5  # image size from which views are smaller, and their resolution: docs/photographs.md
STEPS = 1000  # least steps of a run, which sets its default epochs
OF_INIT: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-4}  # for an encoder with trained initial weights
OF_START: dict[str, Any] = {
    "norms": "keep",
    "mix": 0.5,
    "head_first": 0.1,
}  # for the same: docs/trained-weights.md has what they gain
DOMAINS: dict[str, dict[str, Any]] = {
    "photos": {},
    "satellite": TURNED | {"saturation": 0.1, "hue": 0.0, "grayscale": 0.0},
    "microscopy": TURNED | {"crop_min": 0.4, "saturation": 0.2, "hue": 0.05, "grayscale": 0.0},
    "xray": NO_COLOUR | {"flip": 0.0, "crop_min": 0.4},
    "documents": {"flip": 0.0, "crop_min": 0.4, "saturation": 0.2, "hue": 0.05},
    "textures": TURNED | {"crop_min": 0.1, "saturation": 0.1, "hue": 0.0, "grayscale": 0.0},
}  # view settings by domain (crlf.augmentation.ViewSettings); docs/views.md has the reasons
