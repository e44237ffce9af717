"""VISReg: views agree (invariance), each feature varies (variance), and random directions look normal (sketching).

Wu, Balestriero and Levine, VISReg: Variance-Invariance-Sketching Regularization for JEPA training, 2026,
https://arxiv.org/abs/2606.02572. Scale and shape are separate terms: the standard deviation of each feature should be
1, and the features divided by it should be normally distributed. Unlike the gradient of SIGReg, this gradient does not
vanish when all features are equal. The terms are those of the authors' code, which also pulls the mean to 0. The
quantiles of few images spread less than a normal distribution (a deviation of 0.76 for 8, 0.94 for 64, 0.98 for 256),
so the shape term shrinks the features of a small batch.

The defaults are those of the code for small images: weight 0.6, a projection of 128, 256 directions and equal weights
of the three terms. The hidden layers are those of our `lejepa`.

Shapes: V views, B images, D embedding, P projection, K directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import SHARE, WIDTH, Method, by_view, in_float32, in_sizes, mlp, out_dim, require, spread
from crlf.methods.lejepa import Directions, prediction

LEAST = 1e-6  # smallest divisor, as in the authors' code
WEIGHT = (0, 1e6)


@dataclass(frozen=True, kw_only=True)
class VISRegSettings:
    """The loss and the projection head."""

    regularisation: float = 0.6
    """Weight of the three terms below together; the agreement of views has what is left of 1."""
    scale: float = 1.0
    """Weight of each feature's deviation from a standard deviation of 1."""
    shape: float = 1.0
    """Weight of the distance from a normal distribution along random directions."""
    centre: float = 1.0
    """Weight of each feature's mean, which should be 0."""
    directions: int = 256
    """Random directions that a step sketches."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    projection: int = 128
    """Width of the projections, which the loss compares."""

    def __post_init__(self) -> None:
        require(self, regularisation=SHARE, scale=WEIGHT, shape=WEIGHT, centre=WEIGHT, directions=WIDTH)
        require(self, hidden=WIDTH, projection=WIDTH)


@in_float32
def visreg_terms(z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, shape and centre of VISReg, each averaged over the views.

    Scale is the mean of (1 - s)^2 over the features, where s is the standard deviation (divided by B, not B - 1). Shape
    is the squared sliced Wasserstein distance between the features divided by s and a normal distribution: along each
    direction, the sorted images are compared with the quantiles i / (B + 1). No gradient flows through this division.
    Centre is the mean of the squared means.

    Args:
        z: float (V, B, P), projections.
        directions: float (K, P), rows of length 1.

    Returns:
        Three scalars of at least 0. Half precision is computed in float32.
    """
    B = z.shape[1]
    mean = z.mean(dim=1, keepdim=True)  # (V, 1, P)
    centred = z - mean
    deviation = (centred.norm(dim=1) / math.sqrt(B)).clamp_min(LEAST)  # (V, P)
    share = torch.arange(1, B + 1, device=z.device, dtype=z.dtype) / (B + 1)
    quantiles = math.sqrt(2) * torch.erfinv(2 * share - 1)  # (B,)
    along = (centred / deviation.detach()[:, None]) @ directions.mT  # (V, B, K)
    shape = (along.sort(dim=1).values - quantiles[:, None]).square().mean()
    return (1 - deviation).square().mean(), shape, mean.square().mean()


class VISReg(Method):
    """Encoder and projector."""

    title = "VISReg"
    paper = "Wu et al. 2026, https://arxiv.org/abs/2606.02572"
    gist = "views agree; features vary and are normally distributed"
    needs = "a batch of 64 or more"
    loss_name = "VISReg"
    loss_falls = True
    takes_local = True
    Settings = VISRegSettings

    def __init__(self, encoder: nn.Module, settings: VISRegSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.hidden, s.projection])
        self.directions = Directions(s.directions, s.projection)
        self.weight, self.weights = s.regularisation, (s.scale, s.shape, s.centre)

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = in_sizes(self.encoder, views)  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        invariance, terms = prediction(z, self.large(z).mean(dim=0)), visreg_terms(z, self.directions.rows)
        regular = torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()
        named = {"invariance": invariance, **dict(zip(("scale", "shape", "centre"), terms, strict=True))}
        loss = (1 - self.weight) * invariance + self.weight * regular
        return loss, {"spread": spread(z), **{name: term.detach() for name, term in named.items()}}

    def after_step(self, progress: float) -> None:
        self.directions.renew()
