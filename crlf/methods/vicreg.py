"""VICReg: views agree (invariance), each feature varies (variance), and no two say the same (covariance).

Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022,
https://arxiv.org/abs/2105.04906. The variance term keeps it from collapse: `spread` in the log tells. With V views the
loss is the mean of the paper's over all pairs of views.

Defaults: solo-learn's CIFAR recipe: three layers of 2048, weights 25, 25 and 1 (the paper's). The last layer has no
bias: no term would feel it. (Equation 6 adds the variance terms of both views, and so do we; the authors' code takes
their mean.)

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.methods.base import WIDTH, Method, by_view, in_float32, mlp, out_dim, require, spread, variance
from crlf.runtime.sharing import WHOLE, Share

EPSILON = 1e-4  # the paper's, under the root
WEIGHT = (0, 1e6)


@dataclass(frozen=True, kw_only=True)
class VICRegSettings:
    """The three weights and the projection head."""

    invariance: float = 25.0
    """Weight of the distance between views."""
    variance: float = 25.0
    """Weight of the hinge that holds each feature's standard deviation at 1 or more."""
    covariance: float = 1.0
    """Weight of the covariances between features."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    projection: int = 2048
    """Features that the loss sees."""

    def __post_init__(self) -> None:
        require(self, invariance=WEIGHT, variance=WEIGHT, covariance=WEIGHT, hidden=WIDTH, projection=WIDTH)


@in_float32
def vicreg_terms(z: Tensor, share: Share = WHOLE) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of VICReg (equations 1, 2, 4 and 5), each as a pair of views has them, mean over all pairs.

    Args:
        z: float (V, B, P), projections; V and B at least 2. Half precision is computed in float32.
        share: whose images these are; invariance is of these, variance and covariance are of all.

    Returns:
        Invariance, the mean squared difference over B and P (official code; equation 5 sums over P); variance and
        covariance, of both views of a pair together. Three scalars of at least 0.
    """
    V, own, P = z.shape
    invariance = 2 * z.var(dim=0).mean()  # the mean over pairs of (a - b)^2 is twice the unbiased variance
    deviation = (variance(z, share) + EPSILON).sqrt()  # (V, P)
    centred = z - share.average(z.mean(dim=1, keepdim=True))
    covariances = share.total(centred.mT @ centred / (share.count(own) - 1))  # (V, P, P)
    others = covariances.square().sum() - covariances.diagonal(dim1=1, dim2=2).square().sum()
    return invariance, 2 * F.relu(1 - deviation).mean(), 2 * others / (V * P)


class VICReg(Method):
    """Encoder and projector."""

    title = "VICReg"
    paper = "Bardes et al. 2022, https://arxiv.org/abs/2105.04906"
    gist = "views agree, features vary and do not repeat each other"
    needs = "a wide projection"
    loss_name = "VICReg"
    loss_falls = True
    Settings = VICRegSettings

    def __init__(self, encoder: nn.Module, settings: VICRegSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.hidden, s.projection], bias=False)
        self.weights = (s.invariance, s.variance, s.covariance)

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        terms = vicreg_terms(z, share)
        loss = torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()
        names = ("invariance", "variance", "covariance")
        return loss, {"spread": spread(z, share), **{n: t.detach() for n, t in zip(names, terms, strict=True)}}
