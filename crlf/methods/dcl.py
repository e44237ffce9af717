"""DCL, decoupled contrastive learning: SimCLR without the positive in the denominator, which helps small batches.

Yeh, Hong, Hsu, Liu, Chen and LeCun, Decoupled Contrastive Learning, ECCV 2022, https://arxiv.org/abs/2110.06848. With
more than two views of an image, every ordered pair of them is a positive pair.

Defaults: head and temperature of lightly's CIFAR-10 benchmark (a head of 512 and 128, temperature 0.1).

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import TEMPERATURE, WIDTH, Method, by_view, mlp, out_dim, require
from crlf.methods.negatives import over_negatives
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class DCLSettings:
    """The loss and the projection head."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    hidden: int = 512
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of the projections, which the loss compares."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH)


def dcl(z: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The decoupled contrastive loss (DCL, equation 6), mean over all ordered pairs of two views of the same image.

    Args:
        z: float (V, B, P), the projections; V and B at least 2. They need not be normalised. Half precision is
            computed in float32.
        temperature: above 0.
        share: whose images these are; the mean is over these.

    Returns:
        A scalar, which may be negative; log(V (B - 1)) when all projections are equal.

    Raises:
        InputError: B is 1: there is no negative.
    """
    return over_negatives(z, temperature, _decoupled, share)


def _decoupled(positives: Tensor, negatives: Tensor) -> Tensor:
    return negatives - positives


class DCL(Method):
    """Encoder and projector under the decoupled loss."""

    title = "DCL"
    paper = "Yeh et al. 2022, https://arxiv.org/abs/2110.06848"
    gist = "SimCLR without the positive in the denominator"
    needs = "less of a batch than `simclr`"
    loss_name = "DCL"
    loss_falls = True
    Settings = DCLSettings

    def __init__(self, encoder: nn.Module, settings: DCLSettings):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), settings.hidden, settings.projection])
        self.temperature = settings.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return dcl(z, self.temperature, share), {}
