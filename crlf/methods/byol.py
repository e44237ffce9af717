"""BYOL: a prediction from one view agrees with a slowly moving target's projection of another; no negatives.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, https://arxiv.org/abs/2006.07733. Predictor and target together
keep it from collapse: `spread` in the log tells. With V views the loss is the mean over all ordered pairs of views;
with two, half of the paper's sum.

Defaults: the heads of lightly's CIFAR-10 benchmark (1024 and 256) and the momentum of solo-learn's CIFAR recipe (0.99
to 1). The projector's last layer has no bias, since the predictor's batch norm would undo it.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import (
    SHARE,
    WIDTH,
    Method,
    Target,
    by_view,
    in_float32,
    mlp,
    out_dim,
    over_pairs,
    require,
    spread,
    unit,
)
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class BYOLSettings:
    """The heads and the target."""

    hidden: int = 1024
    """Width of the hidden layers of projector and predictor."""
    projection: int = 256
    """Width of the projections, which the loss compares."""
    target_momentum: float = 0.99
    """Momentum of the target's moving average at the start."""
    target_momentum_end: float = 1.0
    """Momentum at the end, reached along a cosine."""

    def __post_init__(self) -> None:
        require(self, hidden=WIDTH, projection=WIDTH, target_momentum=SHARE, target_momentum_end=SHARE)


@in_float32
def byol(q: Tensor, z: Tensor) -> Tensor:
    """The squared distance of normalised prediction and target (BYOL, equation 2), mean over the images.

    Args:
        q, z: float (B, P), predictions of a view and the target's projections of another; they need not be normalised.

    Returns:
        A scalar in 0..4: 2 - 2 cosine. Half precision is computed in float32.
    """
    return (unit(q) - unit(z)).square().sum(dim=1).mean()


class BYOL(Method):
    """Encoder, projector and predictor, and a target of the first two."""

    title = "BYOL"
    paper = "Grill et al. 2020, https://arxiv.org/abs/2006.07733"
    gist = "a prediction agrees with a slow target"
    needs = "a target, a predictor; many steps"
    Settings = BYOLSettings

    def __init__(self, encoder: nn.Module, settings: BYOLSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection], bias=False)
        self.predictor = mlp([s.projection, s.hidden, s.projection])
        self.target = Target(encoder, self.projector, start=s.target_momentum, end=s.target_momentum_end)

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        z = self.projector(self.encoder(torch.cat(list(views))))  # (V B, P)
        q = self.predictor(z)
        return by_view(q, views), self.target(views), by_view(z.detach(), views)  # each (V, B, P)

    def loss(self, q: Tensor, k: Tensor, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return over_pairs(byol, q, k), {"spread": spread(z, share)}

    def after_step(self, progress: float) -> None:
        self.target.follow(self.encoder, self.projector, progress=progress)
