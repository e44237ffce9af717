"""Encoders: images to embeddings. An entry of `ENCODERS` is a function of the channels, the size and the regions.

Every encoder takes float (B, C, h, w) and gives float (B, D), and has the attribute `out_dim` = D. Its last maps
are averaged over space: as a whole in training, where the loss asks for no more; in R x R regions once it is frozen,
because what lies where tells images apart. The regions change no weight. What they are worth is in docs/recipe.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from crlf.errors import InputError, unknown

SMALL = 64  # below this many pixels a ResNet gets the small-image stem


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """What the frozen encoder gives for an image."""

    regions: int = 2
    """Its maps are averaged over this many regions a side, each apart: 2 gives four times the numbers of 1."""
    mirror: bool = True
    """An embedding is the mean of those of the image and of its mirror image, in twice the time."""

    def __post_init__(self) -> None:
        if not 1 <= self.regions <= 16:
            raise InputError(f"regions must be in 1..16, not {self.regions}")


class Frozen(nn.Module):
    """A trained encoder as it is used: in evaluation mode, with no gradients; float (B, C, H, W) -> float (B, D)."""

    def __init__(self, encoder: nn.Module, mirror: bool):
        super().__init__()
        self.encoder, self.mirror, self.out_dim = encoder, mirror, encoder.out_dim
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)  # (B, D)
        return (h + self.encoder(x.flip(3))) / 2 if self.mirror else h


class RegionMean(nn.Module):
    """The means of a map over R x R regions side by side: float (B, C, h, w) -> (B, R R C).

    The same numbers as adaptive average pooling, which Apple's GPUs have only for sizes that R divides.
    """

    def __init__(self, regions: int):
        super().__init__()
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.bounds(side) for side in x.shape[2:])
        parts = [x[:, :, top:bottom, left:right].mean(dim=(2, 3)) for top, bottom in rows for left, right in columns]
        return torch.cat(parts, dim=1)

    def bounds(self, side: int) -> list[tuple[int, int]]:
        return [(i * side // self.regions, -(-(i + 1) * side // self.regions)) for i in range(self.regions)]


class CNN(nn.Module):
    """The light CNN: four 3x3 convolutions, each with a 2x2 max-pool (but the last), batch norm and GELU.

    The pool comes before the norm and the activation: these are bound by memory, and then touch a quarter of it. The
    embedding is the mean over space of the last three stages, side by side: the earlier ones keep what the loss at the
    end has no use for. What each choice is worth is in docs/recipe.md.

    Args:
        channels: of the images.
        regions: a side, see `RegionMean`.
        widths: channels of each stage.
        read: how many stages, from the last, make the embedding.
    """

    def __init__(self, channels: int, regions: int = 1, widths: Sequence[int] = (32, 64, 128, 256), read: int = 3):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False),
                nn.MaxPool2d(2) if i < len(widths) - 1 else nn.Identity(),
                nn.BatchNorm2d(fan_out),
                nn.GELU(),
            )
            for i, (fan_in, fan_out) in enumerate(pairwise((channels, *widths)))
        )
        self.read = read
        self.pool = RegionMean(regions)
        self.out_dim = regions**2 * sum(widths[-read:])

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return torch.cat([self.pool(x) for x in maps[-self.read :]], dim=1)  # (B, D)


def cnn(channels: int, size: int, regions: int) -> nn.Module:
    return CNN(channels, regions)


def resnet18(channels: int, size: int, regions: int) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016) without its classifier, with the stem for the size of the images.

    Below 64 px the stem is a 3x3 convolution of stride 1 and no pool (SimCLR, appendix B.9).
    """
    import torchvision  # slow to import, and only ResNets need it

    net = torchvision.models.resnet18(weights=None)
    if size < SMALL:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    net.avgpool = RegionMean(regions)
    net.out_dim = regions**2 * net.fc.in_features
    net.fc = nn.Identity()
    return net


ENCODERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": cnn,
    "resnet18": resnet18,
}


def build(name: str, channels: int, size: int, regions: int = 1) -> nn.Module:
    """A fresh encoder, channels last, for images of these channels and this height (the smaller of height and width).

    Raises:
        InputError: the name is in no table.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    return ENCODERS[name](channels, size, regions).to(memory_format=torch.channels_last)


def embedding_dim(name: str, channels: int, size: int, settings: EmbeddingSettings) -> int:
    """The width of an embedding, without building the encoder."""
    with torch.device("meta"):
        return build(name, channels, size, settings.regions).out_dim  # type: ignore[return-value]
