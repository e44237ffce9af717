"""Normalisation: a mean is taken from each channel of an image, and the rest is divided by a standard deviation.

Both are those of the training images: published ones of a data set known by name, else measured once, before the first
step. They are kept in recipe.json, and whatever sees an image later uses them.

Shapes: N and B images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crlf.errors import InputError

SAMPLE = 10_000  # images that are measured, at most
PART = 50  # of them at a time: in float64 an image is eight times as large
DIGITS = 4  # as published ones have
FLOOR = 0.004  # one step of a pixel: a channel that varies less, or not at all, would be noise, or divided by 0


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is taken from each channel and what it is divided by, for pixels in 0..1; one number is every channel's."""

    mean: tuple[float, ...] = ()
    """Taken from each channel, in 0..1; without numbers, the mean of the training images."""
    std: tuple[float, ...] = ()
    """What each channel is then divided by; without numbers, the standard deviation of the training images."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise InputError(f"mean and std must have as many numbers as each other, not {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)):
            raise InputError(f"mean must be finite, not {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise InputError(f"std must be above 0 and finite, not {self.std}")

    @property
    def known(self) -> bool:
        """Whether there are numbers, or the training images are still to give them."""
        return bool(self.mean)

    def numbers(self, channels: int) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of each of so many channels.

        Raises:
            InputError: there are none, or of another number of channels.
        """
        if not self.known:
            raise InputError("mean and std are not known: `crlf pretrain` measures them and notes them in recipe.json")
        if len(self.mean) not in (1, channels):
            rule = f"one value, or as many as the images have channels, {channels}"
            raise InputError(f"mean and std must have {rule}, not {len(self.mean)}: such as --mean 0.5 --std 0.25")
        each = channels // len(self.mean)
        return self.mean * each, self.std * each

    def of_channels(self, like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """As `numbers`: float (C,) twice, where another tensor is."""
        mean, std = self.numbers(channels)
        return constants(mean, like), constants(std, like)


def normalise(images: Tensor, by: Normalisation) -> Tensor:
    """An image as it is: uint8 (B, C, H, W) -> float32 (B, C, H, W), normalised, channels last."""
    x = images.float().div_(255).contiguous(memory_format=torch.channels_last)
    mean, std = by.of_channels(x, x.shape[1])
    return x.sub_(mean[:, None, None]).div_(std[:, None, None])


def denormalise(views: Tensor, by: Normalisation) -> Tensor:
    """The inverse, to look at: float (..., C, h, w) -> uint8 (..., C, h, w), clamped."""
    mean, std = by.of_channels(views, views.shape[-3])
    return ((views * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Float (n,), of these numbers, where another tensor is. A GPU fills them in: to copy them there it would wait."""
    return torch.stack([like.new_full((), value) for value in values])


def measured(images: Tensor) -> Normalisation:
    """The mean and the standard deviation of each channel over all pixels of evenly spaced images.

    Sums of whole numbers are exact in float64, so the order and the number of threads do not matter.

    Args:
        images: uint8 (N, C, H, W), on the CPU, in memory or mapped; 10,000 of more are read.

    Returns:
        C numbers of 4 digits each; no deviation is below `FLOOR`.
    """
    count = min(len(images), SAMPLE)
    rows = torch.arange(count) * len(images) // count
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in rows.split(PART):
        x = images[part].double()  # (n, C, H, W)
        total, squares = total + x.sum(dim=(0, 2, 3)), squares + x.square().sum(dim=(0, 2, 3))
    pixels = count * images.shape[2] * images.shape[3]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return Normalisation(mean=rounded(mean / 255), std=rounded((std / 255).clamp(min=FLOOR)))


def rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, DIGITS) for value in values.tolist())
