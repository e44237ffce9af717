"""Encoders: images to embeddings. An entry of `ENCODERS` is a function of the channels and the size of the images.

Every encoder takes float (B, C, h, w) and gives float (B, D), and has the attribute `out_dim` = D. One that chooses
something by the size of the images says what in the attribute `choice`, for the log. "timm:NAME" is any model of timm.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from crlf.errors import InputError, unknown

SMALL = 64  # below this many pixels a ResNet gets the small-image stem
TIMM = "timm:"  # before the name of a model of timm


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


def resnet(name: str, channels: int, size: int) -> nn.Module:
    """A ResNet of torchvision (He et al. 2016) without its classifier, with the stem for the size of the images.

    Below 64 px the stem is a 3x3 convolution of stride 1 and no pool (SimCLR, appendix B.9); from there on the usual
    one, a 7x7 convolution of stride 2 and a pool.
    """
    import torchvision  # slow to import, and only ResNets need it

    net = torchvision.models.get_model(name, weights=None)
    if size < SMALL:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    net.choice = f"{'small-image' if size < SMALL else 'usual'} stem for {size} px"
    net.out_dim = net.fc.in_features
    net.fc = nn.Identity()
    return net


def vit(name: str, channels: int, size: int) -> nn.Module:
    """A vision transformer of timm (Dosovitskiy et al. 2021) with the patch for the size of the images, `patch_side`.

    The embedding is the class token's. The patch projection stays as it was drawn: trained, its gradients make
    contrastive learning of ViTs unstable (MoCo v3, section 4.2). Any image or view whose sides are whole patches will
    do; for another size than it was built for, the position embeddings are interpolated.
    """
    side = patch_side(size)
    net = create(f"{name}_patch16_224", channels, img_size=size, patch_size=side, dynamic_img_size=True)
    net.patch_embed.proj.requires_grad_(False)
    net.choice = f"patches of {side} px for {size} px, their projection random and fixed"
    net.out_dim = net.num_features
    return net


def patch_side(size: int) -> int:
    """Pixels along a side of a ViT's patch: 16 from 128 px on, 8 from 64 px on, 4 below; 8 x 8 patches or more."""
    return next((side for side in (16, 8) if size >= 8 * side), 4)


def from_timm(name: str, channels: int, size: int) -> nn.Module:
    """Any model of timm without its classifier, untrained, told the size of the images where it takes one.

    Raises:
        InputError: timm is not installed, has no such model, or that model does not take images of this size.
    """
    net = None
    for options in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}):
        try:
            net = create(name, channels, **options)
            break
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    assert net is not None, "the last options are none"
    net.out_dim = trial(net, TIMM + name, channels, size, size)
    return net


def create(name: str, channels: int, **options: Any) -> Any:
    """timm's `create_model`, without a classifier and without trained weights."""
    if name not in timm_names():
        near = difflib.get_close_matches(name, timm_names(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(TIMM + n) for n in near)}?" if near else ""
        raise InputError(f"encoder {TIMM + name!r} is not known: timm {timm().__version__} has no such model.{hint}")
    return timm().create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)


def timm() -> Any:
    """The module timm.

    Raises:
        InputError: it is not installed.
    """
    try:
        import timm as module  # slow to import, and an extra
    except ModuleNotFoundError as error:
        raise InputError("ViTs and timm: encoders need timm: pip install 'crlf[timm]'") from error
    return module


def timm_names() -> list[str]:
    return timm().list_models()


ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn": cnn,
    "resnet18": partial(resnet, "resnet18"),
    "resnet34": partial(resnet, "resnet34"),
    "resnet50": partial(resnet, "resnet50"),
    "vit_tiny": partial(vit, "vit_tiny"),
    "vit_small": partial(vit, "vit_small"),
}


def find(name: str) -> Callable[[int, int], nn.Module]:
    """The function that makes the encoder of this name: an entry of `ENCODERS`, or timm's model for "timm:NAME".

    Raises:
        InputError: no table holds the name. Which models timm has is seen only when one is made.
    """
    if name.startswith(TIMM):
        return partial(from_timm, name.removeprefix(TIMM))
    if name not in ENCODERS:
        raise unknown("encoder", name, [*ENCODERS, f"{TIMM}NAME"])
    return ENCODERS[name]


def build(name: str, channels: int, size: int) -> nn.Module:
    """A fresh encoder, channels last, for images of these channels and this height (the smaller of height and width).

    Raises:
        InputError: the name is not known, timm is needed and missing, or the encoder does not take such images.
    """
    return find(name)(channels, size).to(memory_format=torch.channels_last)


def trial(encoder: nn.Module, name: str, channels: int, height: int, width: int, advice: str = "") -> int:
    """The length D of the embedding of an image of this size, found by embedding one.

    Args:
        name: the encoder's, for the message.
        advice: the end of the message.

    Raises:
        InputError: the encoder does not take such images.
    """
    training = encoder.training
    try:
        with torch.no_grad():
            h = encoder.eval()(torch.zeros(1, channels, height, width))  # (1, D)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"encoder {name!r} does not take {height} × {width} px: {why}{advice}") from error
    finally:
        encoder.train(training)
    if h.ndim != 2:
        raise InputError(f"encoder {name!r} gives {tuple(h.shape)} for an image, not one row")
    return h.shape[1]
