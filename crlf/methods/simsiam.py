"""SimSiam: a prediction from one view agrees with the projection of another, through which no gradient flows.

Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, https://arxiv.org/abs/2011.10566. Predictor
and stop-gradient together keep it from collapse: `spread` in the log tells. With V views the loss is the mean over all
ordered pairs of views; with two it is the paper's.

Defaults: the paper's for CIFAR-10 (appendix D: two layers in the projector), 2048 wide, a bottleneck of 512.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import WIDTH, Method, by_view, in_float32, mlp, out_dim, over_pairs, require, spread, unit
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class SimSiamSettings:
    """The heads."""

    projection: int = 2048
    """Width of the projector's two layers, and of what the loss compares."""
    bottleneck: int = 512
    """Width of the predictor's hidden layer."""

    def __post_init__(self) -> None:
        require(self, projection=WIDTH, bottleneck=WIDTH)


@in_float32
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Minus the cosine of prediction and projection, which counts as a constant (SimSiam, equations 1 and 3).

    Args:
        p, z: float (B, P), predictions of a view and projections of another; they need not be normalised.

    Returns:
        A scalar in -1..1, mean over the images; no gradient reaches z. Half precision is computed in float32.
    """
    return -(unit(p) * unit(z.detach())).sum(dim=1).mean()


class SimSiam(Method):
    """Encoder, projector and predictor."""

    title = "SimSiam"
    paper = "Chen and He 2021, https://arxiv.org/abs/2011.10566"
    gist = "a prediction agrees with the other view, held still"
    needs = "a predictor"
    Settings = SimSiamSettings

    def __init__(self, encoder: nn.Module, settings: SimSiamSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.projection, s.projection], last_norm=True)
        self.predictor = mlp([s.projection, s.bottleneck, s.projection])

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        z = self.projector(self.encoder(torch.cat(list(views))))  # (V B, P)
        return by_view(self.predictor(z), views), by_view(z, views)  # each (V, B, P)

    def loss(self, p: Tensor, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return over_pairs(negative_cosine, p, z), {"spread": spread(z, share)}
