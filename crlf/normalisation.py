"""Normalisation: subtracts a mean from each channel of an image and divides by a standard deviation.

Both are those of the training images: published ones for a named data set, else measured once before the first step.
They are stored in recipe.json and used for every image later.

Shapes: N and B images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from crlf.errors import InputError

SAMPLE = 10_000  # images to measure, at most
PART = 50  # images at a time, since float64 takes eight times the memory
DIGITS = 4  # as in published values
FLOOR = 0.004  # smallest standard deviation, one step of a pixel: a constant channel must not be divided by 0


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation of the channels, for pixels in 0..1. A single number applies to every channel."""

    mean: tuple[float, ...] = ()
    """The mean to subtract from each channel, in 0..1; by default that of the training images."""
    std: tuple[float, ...] = ()
    """The standard deviation to divide each channel by; by default that of the training images."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise InputError(f"mean and std must have the same number of values, not {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)):
            raise InputError(f"mean must be finite, not {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise InputError(f"std must be above 0 and finite, not {self.std}")

    @property
    def known(self) -> bool:
        """Whether the values are set; if not, they are measured on the training images."""
        return bool(self.mean)

    def numbers(self, channels: int) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of each channel.

        Raises:
            InputError: the values are not set, or are for another number of channels.
        """
        if not self.known:
            raise InputError("mean and std are not known: `crlf pretrain` measures them and stores them in recipe.json")
        if len(self.mean) not in (1, channels):
            rule = f"one value, or one for each of the {channels} channels"
            raise InputError(f"mean and std must have {rule}, not {len(self.mean)}: for example --mean 0.5 --std 0.25")
        each = channels // len(self.mean)
        return self.mean * each, self.std * each

    def of_channels(self, like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """As `numbers`, as tensors float (C,) on the device and with the dtype of `like`."""
        mean, std = self.numbers(channels)
        return constants(mean, like), constants(std, like)


def normalise(images: Tensor, by: Normalisation) -> Tensor:
    """Normalise images: uint8 (B, C, H, W) -> float32 (B, C, H, W), channels last."""
    x = images.float().div_(255).contiguous(memory_format=torch.channels_last)
    mean, std = by.of_channels(x, x.shape[1])
    return x.sub_(mean[:, None, None]).div_(std[:, None, None])


def denormalise(views: Tensor, by: Normalisation) -> Tensor:
    """The inverse, for display: float (..., C, h, w) -> uint8 (..., C, h, w), clamped."""
    mean, std = by.of_channels(views, views.shape[-3])
    return ((views * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor, float (n,), filled on the device of `like`, since a copy would wait for the device."""
    return torch.stack([like.new_full((), value) for value in values])


class Rows(Protocol):
    """Images that are indexed by rows: a tensor, or files that are decoded then (crlf.data.encoded)."""

    @property
    def shape(self) -> torch.Size: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def measured(images: Rows) -> Normalisation:
    """Measure the mean and standard deviation of each channel over evenly spaced images.

    Sums of whole numbers are exact in float64, so the result does not depend on the order or the number of threads.

    Args:
        images: uint8 (N, C, H, W), on the CPU, in memory or mapped; at most 10,000 of them are read.

    Returns:
        C values each, rounded to 4 digits; no deviation is below `FLOOR`.
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
