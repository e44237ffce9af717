"""ReSA: projections agree with a clustering of the batch by the encoder's own output.

Weng, An, Ma, Qi, Luo, Yang, Dong and Huang, Clustering Properties of Self-Supervised Learning, ICML 2025,
https://arxiv.org/abs/2501.18452. The cosine similarities of all images of the batch, before the projector, become an
assignment whose rows and columns have equal sums (Sinkhorn and Knopp, as in SwAV), so that similar images are partly
assigned to each other. The projections then predict this assignment, in both directions. With V views the loss is the
mean over all ordered pairs of a view and another view of the target.

The defaults are those of the authors' CIFAR code: a head of 2048, 2048 and 512 with batch norm after the last layer,
temperature 0.4, epsilon 0.05, 3 iterations, a target momentum of 0.996 to 1. The first view makes the assignment; the
authors only crop and flip this view, while we draw it like the others.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from crlf.methods.base import (
    SHARE,
    TEMPERATURE,
    WIDTH,
    Method,
    Target,
    by_view,
    cosine,
    in_float32,
    in_sizes,
    mlp,
    out_dim,
    over_pairs,
    require,
    spread,
)
from crlf.methods.swav import sinkhorn, swapped_prediction
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class ReSASettings:
    """The loss, the projection head and the target."""

    temperature: float = 0.4
    """Divides the cosines of projections."""
    epsilon: float = 0.05
    """Divides the cosines that assign; the smaller, the harder."""
    iterations: int = 3
    """Of Sinkhorn and Knopp."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    projection: int = 512
    """Width of the projections, which the loss compares."""
    target_momentum: float = 0.996
    """Momentum of the target's moving average at the start."""
    target_momentum_end: float = 1.0
    """Momentum at the end, reached along a cosine."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, epsilon=TEMPERATURE, iterations=(1, 1000))
        require(self, hidden=WIDTH, projection=WIDTH, target_momentum=SHARE, target_momentum_end=SHARE)


@in_float32
def resa(z: Tensor, target: Tensor, assignment: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The cross-entropy between an assignment and the cosines of two views, in both directions (ReSA, equation 3).

    Args:
        z, target: float (B, P), projections of a view, and the target's projections of another view. They need not be
            normalised. With several processes, both are those of the images of this process.
        assignment: float (B, B) for the whole batch; row i assigns image i to images of the target and sums to 1.
        temperature: above 0.
        share: the share of this process; the mean is over its images.

    Returns:
        A scalar of at least 0. Half precision is computed in float32.
    """
    rows, columns = share.own_columns(assignment.mT).mT, share.own_columns(assignment).mT  # (b, B) each
    there = swapped_prediction(cosine(z, share.gather(target)), rows, temperature)
    back = swapped_prediction(cosine(target, share.gather(z)), columns, temperature)
    return (there + back) / 2


class ReSA(Method):
    """Encoder and projector, and targets of both."""

    title = "ReSA"
    paper = "Weng et al. 2025, https://arxiv.org/abs/2501.18452"
    gist = "projections follow a clustering of the batch by the encoder itself"
    needs = "a target (a forward pass more), a large batch"
    takes_local = True
    Settings = ReSASettings

    def __init__(self, encoder: nn.Module, settings: ReSASettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.hidden, s.projection], last_norm=True)
        momenta = {"start": s.target_momentum, "end": s.target_momentum_end}
        self.target, self.target_projector = Target(encoder, **momenta), Target(self.projector, **momenta)
        self.settings = s

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = in_sizes(self.encoder, views)  # (V B, D)
        z = by_view(self.projector(h), views)  # (V, B, P)
        target_h = self.target(self.large(views))  # (V, B, D)
        first = by_view(h.detach(), views)[:1]  # (1, B, D)
        return z, self.target_projector(list(target_h)), first, target_h[:1]

    def loss(
        self, z: Tensor, target: Tensor, h: Tensor, target_h: Tensor, share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.settings
        rows = sinkhorn(cosine(h[0], share.gather(target_h[0])), s.epsilon, s.iterations, share)  # (b, B)
        assignment = share.gather(rows)  # (B, B)
        loss = over_pairs(lambda a, b: resa(a, b, assignment, s.temperature, share), z, target)
        own = assignment.diagonal().mean()  # 1 if every image is its own cluster
        return loss, {"spread": spread(z, share), "own_share": own}

    def after_step(self, progress: float) -> None:
        self.target.follow(self.encoder, progress=progress)
        self.target_projector.follow(self.projector, progress=progress)
