"""Barlow Twins: features of two views correlate each with itself and with no other.

Zbontar, Jing, Misra, LeCun and Deny, Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021,
https://arxiv.org/abs/2103.03230. With V views the loss is the mean over all pairs of views (it is the same both ways);
with two it is the paper's.

Defaults: the projector of lightly's CIFAR-10 benchmark (two layers of 2048) and the paper's weight (0.005; its code
says 0.0051). The last layer has no bias, since the loss takes off the mean.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from crlf.methods.base import WIDTH, Method, by_view, in_float32, mlp, out_dim, require, spread, variance
from crlf.runtime.sharing import WHOLE, Share

EPSILON = 1e-5  # added to a variance, as batch norm does


@dataclass(frozen=True, kw_only=True)
class BarlowSettings:
    """The loss and the projection head."""

    redundancy: float = 0.005
    """Weight of the correlations between different features."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    projection: int = 2048
    """Features that the loss correlates."""
    projector_layers: int = 2
    """Linear layers of the projector; all but the last are hidden. The paper has 3."""

    def __post_init__(self) -> None:
        require(self, redundancy=(0, 1e6), hidden=WIDTH, projection=WIDTH, projector_layers=(1, 16))


@in_float32
def barlow_twins(z1: Tensor, z2: Tensor, redundancy: float, share: Share = WHOLE) -> Tensor:
    """The distance of the cross-correlation matrix to the identity (Barlow Twins, equations 1 and 2).

    Args:
        z1, z2: float (B, P), projections of two views; row i of both is image i. B is at least 2.
        redundancy: the paper's lambda, of the off-diagonal terms.
        share: whose images these are; the correlation is over those of all.

    Returns:
        A scalar of at least 0. Half precision is computed in float32.
    """
    correlation = share.average(_standardised(z1, share).T @ _standardised(z2, share) / len(z1))  # (P, P)
    invariance = (1 - correlation.diagonal()).square().sum()
    others = correlation.square().sum() - correlation.diagonal().square().sum()
    return invariance + redundancy * others


def _standardised(z: Tensor, share: Share) -> Tensor:
    return (z - share.average(z.mean(dim=0))) / (variance(z, share, unbiased=False) + EPSILON).sqrt()


class BarlowTwins(Method):
    """Encoder and projector."""

    title = "Barlow Twins"
    paper = "Zbontar et al. 2021, https://arxiv.org/abs/2103.03230"
    gist = "features correlate with themselves alone"
    needs = "a wide projection"
    loss_name = "Barlow Twins"
    loss_falls = True
    Settings = BarlowSettings

    def __init__(self, encoder: nn.Module, settings: BarlowSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), *[s.hidden] * (s.projector_layers - 1), s.projection], bias=False)
        self.redundancy = s.redundancy

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        losses = [barlow_twins(z[i], z[j], self.redundancy, share) for i, j in combinations(range(len(z)), 2)]
        return torch.stack(losses).mean(), {"spread": spread(z, share)}
