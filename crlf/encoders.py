"""Encoders: images to embeddings. An entry of `ENCODERS` is a function of the channels and the size of the images.

Every encoder takes float (B, C, h, w) and gives float (B, D), and has the attribute `out_dim` = D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from crlf.errors import unknown

SMALL = 64  # below this many pixels a ResNet gets the small-image stem


class CNN(nn.Module):
    """The light CNN: four 3x3 convolutions, each with a 2x2 max-pool (but the last), batch norm and GELU.

    The pool comes before the norm and the activation: these are bound by memory, and then touch a quarter of it. The
    embedding is the mean over space of the last three stages, side by side: the earlier ones keep what the loss at the
    end has no use for. What each choice is worth is in docs/recipe.md.

    Args:
        channels: of the images.
        widths: channels of each stage.
        read: how many stages, from the last, make the embedding.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 128, 256), read: int = 3):
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
        self.out_dim = sum(widths[-read:])

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return torch.cat([x.mean(dim=(2, 3)) for x in maps[-self.read :]], dim=1)  # (B, D)


def cnn(channels: int, size: int) -> nn.Module:
    return CNN(channels)


def resnet18(channels: int, size: int) -> nn.Module:
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
    net.out_dim = net.fc.in_features
    net.fc = nn.Identity()
    return net


ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn": cnn,
    "resnet18": resnet18,
}


def build(name: str, channels: int, size: int) -> nn.Module:
    """A fresh encoder, channels last, for images of these channels and this height (the smaller of height and width).

    Raises:
        InputError: the name is in no table.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    return ENCODERS[name](channels, size).to(memory_format=torch.channels_last)
