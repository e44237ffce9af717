"""Every method in a size that trains in an instant."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from crlf.encoders import CNN
from crlf.methods import METHODS
from crlf.methods.base import Method

SIZE = 16  # of each layer, queue and set of prototypes
LABELS = torch.arange(8) % 3
EVERY = pytest.mark.parametrize("name", METHODS)


def narrow(name: str, size: int = SIZE, **other: float):
    """The settings of a small method: every whole number that is large is a width or a length."""
    fields = dataclasses.fields(METHODS[name].Settings)
    sizes = {field.name: size for field in fields if isinstance(field.default, int) and field.default > 100}
    return METHODS[name].Settings(**{**sizes, **other})


def small(name: str, seed: int = 0, **other: float) -> Method:
    torch.manual_seed(seed)
    method = METHODS[name](CNN(3, widths=(4, 8, 8), read=2), narrow(name, **other))
    method.meet(len(LABELS))
    return method.train()


def views_of(count: int = 2, batch: int = 8, seed: int = 0) -> list[Tensor]:
    """Views that differ less than their images do."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 12, 12, generator=generator)
    return [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(count)]
