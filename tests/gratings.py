"""Images whose classes are orientations of a wave, with settings that learn them; and methods without their guards."""

from __future__ import annotations

import math

import pytest
import torch
from small_methods import narrow
from torch import Tensor, nn

from crlf.augmentation import ViewSettings
from crlf.data import ImageSet
from crlf.methods import METHODS, simsiam
from crlf.methods.base import Method, unit
from crlf.methods.byol import BYOL
from crlf.normalisation import Normalisation

VIEWS = ViewSettings(
    resolution=1.0, crop_min=0.6, flip=0.0, jitter=0.0, grayscale=0.0
)  # a mirror image has another class
NORMALISATION = Normalisation(mean=(0.5,), std=(0.2,))


def gratings(count: int, seed: int, size: int = 16, classes: int = 6) -> ImageSet:
    """uint8 (N, 3, 16, 16)."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    angle = math.pi * (labels + 0.3 * torch.rand(count, generator=g)) / classes
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]  # (N, 16, 16)
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=g)
    wave = torch.sin(2 * math.pi * along / 5 + phase)[:, None]
    noise = 45 * torch.randn(count, 3, size, size, generator=g)
    images = (128 + 20 * wave + noise).clamp(0, 255).to(torch.uint8)
    return ImageSet(images, labels, tuple(map(str, range(classes))), tuple(map(str, range(count))))


def moderate(name: str, **other: float):
    """Settings that learn in seconds: a target that follows slowly would hardly have moved."""
    moderate_sizes = {"target_momentum": 0.5, "hidden": 64, "predictor": 64, **other}
    settings = METHODS[name].Settings
    return narrow(name, 32, **{k: v for k, v in moderate_sizes.items() if hasattr(settings, k) or k in other})


def no_predictor(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    method.predictor = nn.Identity()


def gradient_to_both_sides(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(method, BYOL):
        method.target = Online(method)
    monkeypatch.setattr(simsiam, "negative_cosine", lambda p, z: -(unit(p) * unit(z)).sum(dim=1).mean())


class Online(nn.Module):
    """In the place of a target: the networks themselves, with gradient."""

    def __init__(self, method: Method):
        super().__init__()
        self.networks = [method.encoder, method.projector]  # a list, so that they are not registered twice

    def forward(self, views: list[Tensor]) -> Tensor:
        encoder, projector = self.networks
        return projector(encoder(torch.cat(list(views)))).unflatten(0, (len(views), -1))

    def follow(self, *networks: nn.Module, progress: float) -> None:
        pass
