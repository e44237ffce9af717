"""Encoders: images to embeddings. An entry of `ENCODERS` is a function of the channels, the size and the regions.

Every encoder takes float (B, C, h, w) and returns float (B, D); its attribute `out_dim` is D. The feature maps are
averaged over the whole image during training, and over R x R regions once the encoder is frozen, since the position of
features helps to tell images apart. The regions change no weights; docs/recipe.md has what they gain. ViTs return their
class token, and models of timm their own pooled features: these always have one region.

An encoder that depends on the size of the images describes its choice in the attribute `choice`, for the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from crlf.defaults import unasked
from crlf.encoders.onnx_file import ONNX, OnnxFile
from crlf.errors import InputError, unknown

SMALL = 64  # below this many pixels a ResNet gets the small-image stem
TIMM = "timm:"  # before the name of a model of timm
MATCHES = ("name", "order")
NORMS = ("follow", "keep")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """How the frozen encoder embeds an image."""

    regions: int = 2
    """Average the feature maps over this many regions per side: 2 gives embeddings four times as long as 1."""
    mirror: bool = True
    """Average the embeddings of the image and its mirror image, which takes twice the time."""

    def __post_init__(self) -> None:
        if not 1 <= self.regions <= 16:
            raise InputError(f"regions must be in 1..16, not {self.regions}")


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """The initial weights of the encoder, and how they are trained further."""

    init: str = ""
    """Trained weights to start from: timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, a run folder, or a .safetensors or
    .pth file; by default the weights are random. With --epochs 0 also an .onnx file."""
    match: str = "name"
    """How to match the tensors of --init: by name, or by order (and shape) for a file with other names."""
    partial_init: bool = False
    """Accept weights that fit only a part of the encoder; the rest stays random."""
    freeze: int = 0
    """Freeze this many of the first layers; -N freezes all but the last N."""
    head_first: float = unasked(0.0)
    """Keep the encoder frozen for this share of the training, while the method's head learns. With --init the default
    is 0.1."""
    norms: str = unasked("follow")
    """Statistics of the batch norms: follow uses those of each batch and updates the running ones; keep uses those that
    came with the weights. With --init the default is keep."""
    mix: float = unasked(1.0)
    """Interpolate the final encoder between the initial weights (0) and the trained ones (1), as WiSE-FT does. With
    --init the default is 0.5."""
    layer_decay: float = 1.0
    """Factor by which the learning rate of a layer is lower than that of the next; 1 for the same rate everywhere."""

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown("match", self.match, MATCHES)
        if not 0 <= self.head_first <= 0.9:
            raise InputError(f"head_first must be in 0..0.9, not {self.head_first:g}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.norms not in NORMS:
            raise unknown("norms", self.norms, NORMS)
        if not 0 <= self.mix <= 1:
            raise InputError(f"mix must be in 0..1, not {self.mix:g}")
        for name in ("match", "partial_init", "norms", "mix", "head_first"):
            if not self.init and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise InputError(f"{name} needs init, which is not given")


class Frozen(nn.Module):
    """A trained encoder in evaluation mode and without gradients: float (B, C, H, W) -> float (B, D)."""

    def __init__(self, encoder: nn.Module, mirror: bool):
        super().__init__()
        self.encoder, self.mirror = encoder, mirror
        self.out_dim: int = encoder.out_dim  # type: ignore[assignment]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)  # (B, D)
        return (h + self.encoder(x.flip(3))) / 2 if self.mirror else h


class ExactConv2d(nn.Conv2d):
    """A convolution that uses float32 if the map is narrower than the kernel.

    On a CPU in bf16, oneDNN's kernels in torch 2.14 leave a part of the weight gradient uninitialised in this case
    (tests/test_odd_numbers.py shows it). Such maps are small, so float32 costs little.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu" and x.shape[3] < self.kernel_size[1] and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super()._conv_forward(x.float(), weight, bias)
        return super()._conv_forward(x, weight, bias)


class ExactConv3d(nn.Conv3d):
    """The same in three dimensions, as in timm's lambda networks; any dimension may be the narrow one."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = any(side < width for side, width in zip(input.shape[2:], self.kernel_size, strict=True))
        if input.device.type == "cpu" and narrow and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super()._conv_forward(input.float(), weight, bias)
        return super()._conv_forward(input, weight, bias)


class RegionMean(nn.Module):
    """The means of a map over R x R regions: float (B, C, h, w) -> (B, R R C).

    It equals adaptive average pooling, which Apple's GPUs support only for sizes divisible by R.
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
    """The light CNN: four 3x3 convolutions, each followed by a 2x2 max-pool (except the last), batch norm and SiLU.

    The pool comes before the norm and the activation, which are memory-bound and then touch a quarter of the memory.
    The embedding concatenates the spatial means of the last three stages: earlier stages keep information that the loss
    discards at the end. docs/recipe.md has what each choice gains.

    Args:
        channels: channels of the images.
        regions: regions per side, see `RegionMean`.
        widths: channels of each stage.
        read: how many of the last stages form the embedding.
    """

    def __init__(self, channels: int, regions: int = 1, widths: Sequence[int] = (32, 64, 128, 256), read: int = 3):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False),
                nn.MaxPool2d(2) if i < len(widths) - 1 else nn.Identity(),
                nn.BatchNorm2d(fan_out),
                nn.SiLU(),
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


def resnet(name: str, channels: int, size: int, regions: int) -> nn.Module:
    """A ResNet of torchvision (He et al. 2016) without its classifier, with a stem that suits the size of the images.

    Below 64 px the stem is a 3x3 convolution of stride 1 without a pool (SimCLR, appendix B.9); from 64 px on it is the
    usual one, a 7x7 convolution of stride 2 and a pool.
    """
    import torchvision  # slow to import, and only ResNets need it

    net = torchvision.models.get_model(name, weights=None)
    if size < SMALL:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    net.choice = f"{'small-image' if size < SMALL else 'usual'} stem for {size} px"
    net.avgpool = RegionMean(regions)
    net.out_dim = regions**2 * net.fc.in_features
    net.fc = nn.Identity()
    return net


def vit(name: str, channels: int, size: int, regions: int) -> nn.Module:
    """A vision transformer of timm (Dosovitskiy et al. 2021) with patches that suit the size of the images.

    The embedding is that of the class token. The patch projection stays random and fixed: training it makes contrastive
    learning of ViTs unstable (MoCo v3, section 4.2). The sides of an image or view must be multiples of the patch; for
    another size than `size`, the position embeddings are interpolated.
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


def from_timm(name: str, channels: int, size: int, regions: int) -> nn.Module:
    """Any model of timm, untrained and without its classifier, built for the size of the images if it takes one.

    Raises:
        InputError: timm has no such model, or the model does not accept images of this size.
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


def from_onnx(path: str, channels: int, size: int, regions: int) -> nn.Module:
    """A model in an ONNX file, which cannot be trained."""
    return OnnxFile(path)


def create(name: str, channels: int, **options: Any) -> Any:
    """timm's `create_model` without a classifier and without trained weights.

    The attribute `made_with` of the model holds the arguments, for an export.
    """
    import timm  # slow to import

    if name not in (names := timm.list_models()):
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(TIMM + n) for n in near)}?" if near else ""
        raise InputError(f"encoder {TIMM + name!r} is not known: timm {timm.__version__} has no such model.{hint}")
    net: Any = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    net.made_with = {"architecture": name, "model_args": {"in_chans": channels, **options}}
    return net


ENCODERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": cnn,
    "resnet18": partial(resnet, "resnet18"),
    "resnet34": partial(resnet, "resnet34"),
    "resnet50": partial(resnet, "resnet50"),
    "vit_tiny": partial(vit, "vit_tiny"),
    "vit_small": partial(vit, "vit_small"),
}


def find(name: str) -> Callable[[int, int, int], nn.Module]:
    """The function that builds an encoder by name: an entry of `ENCODERS`, or a model of timm for "timm:NAME".

    Raises:
        InputError: the name is not in the table. Names of timm are checked only when the model is built.
    """
    if name.startswith(TIMM):
        return partial(from_timm, name.removeprefix(TIMM))
    if name.startswith(ONNX):
        return partial(from_onnx, name.removeprefix(ONNX))
    if name not in ENCODERS:
        raise unknown("encoder", name, [*ENCODERS, f"{TIMM}NAME"])
    return ENCODERS[name]


def build(name: str, channels: int, size: int, regions: int = 1) -> nn.Module:
    """Build an untrained encoder in channels-last format.

    Args:
        name: the name of the encoder.
        channels: channels of the images.
        size: the smaller side of the images, in pixels.
        regions: regions per side, see `RegionMean`.

    Raises:
        InputError: the name is not known, or the encoder does not accept such images.
    """
    encoder = find(name)(channels, size, regions)
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if tensor.ndim == 4:  # Module.to fails if there are weights of five dimensions
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    for module in encoder.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = ExactConv2d
        elif type(module) is nn.Conv3d:
            module.__class__ = ExactConv3d
    return encoder


def embedding_dim(name: str, channels: int, size: int, settings: EmbeddingSettings) -> int:
    """The width of an embedding, without building the encoder."""
    with torch.device("meta"):
        return build(name, channels, size, settings.regions).out_dim  # type: ignore[return-value]


def has_regions(name: str) -> bool:
    """Whether the encoder's embedding comes from feature maps, which can be averaged over regions."""
    return not name.startswith(("vit_", TIMM, ONNX))


def trial(encoder: nn.Module, name: str, channels: int, height: int, width: int, advice: str = "") -> int:
    """The length D of the embedding of an image of this size, found by embedding one image.

    Args:
        encoder: the network.
        name: its name, for the message.
        channels, height, width: the shape of an image.
        advice: appended to the message.

    Raises:
        InputError: the encoder does not accept such images.
    """
    training = encoder.training
    try:
        with torch.no_grad():
            h = encoder.eval()(torch.zeros(1, channels, height, width))  # (1, D)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"encoder {name!r} does not accept {height} × {width} px: {why}{advice}") from error
    finally:
        encoder.train(training)
    if h.ndim != 2:
        raise InputError(f"encoder {name!r} must return one row per image, not {tuple(h.shape)}")
    return h.shape[1]
