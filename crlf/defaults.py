"""What a setting is where nobody asked for a value: the domain of the images says how they may be changed, and their
number and size how they are learned from (crlf.recipe.Recipe.for_images).

A default that such knowledge may replace is marked by `unasked`. What a user gives, or recipe.json holds, is a plain
number or word, and stays.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T", int, float, str)


class Unasked:
    """The mark of a value that nobody asked for; it is an int, a float or a str as well."""


class UnaskedInt(Unasked, int):
    """A whole number that nobody asked for."""


class UnaskedFloat(Unasked, float):
    """A number that nobody asked for."""


class UnaskedStr(Unasked, str):
    """A word that nobody asked for."""


def unasked(value: T) -> T:
    """The same value, with the mark."""
    kind = {int: UnaskedInt, float: UnaskedFloat, str: UnaskedStr}[type(value)]
    return kind(value)


TURNED = {"vertical_flip": 0.5, "turn": 0.5}  # nothing is up
NO_COLOUR = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
OF_FILES: dict[str, Any] = {"batch_size": 64}  # of a recipe, for a user's own image files
LARGEST = 64  # pixels a side of these, though they have more
LARGE, OF_LARGE = 64, 0.5  # pixels a side from which views are smaller, and their resolution: docs/photographs.md
STEPS = 1000  # that a run over them has at least: so many epochs
OF_INIT: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-4}  # of an encoder that starts from trained weights
OF_START: dict[str, Any] = {
    "norms": "keep",
    "mix": 0.5,
    "head_first": 0.1,
}  # of the same: docs/trained-weights.md has what they gain
DOMAINS: dict[str, dict[str, Any]] = {
    "photos": {},
    "satellite": TURNED | {"saturation": 0.1, "hue": 0.0, "grayscale": 0.0},
    "microscopy": TURNED | {"crop_min": 0.4, "saturation": 0.2, "hue": 0.05, "grayscale": 0.0},
    "xray": NO_COLOUR | {"flip": 0.0, "crop_min": 0.4},
    "documents": {"flip": 0.0, "crop_min": 0.4, "saturation": 0.2, "hue": 0.05},
    "textures": TURNED | {"crop_min": 0.1, "saturation": 0.1, "hue": 0.0, "grayscale": 0.0},
}  # settings of views (crlf.augmentation.ViewSettings); docs/views.md has the reasons
