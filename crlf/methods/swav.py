"""SwAV: one view predicts the cluster of another; clusters are kept equally full.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, https://arxiv.org/abs/2006.09882. With V views, each view predicts the codes of every other
view; the loss is the mean over all ordered pairs. Small views predict, but have no codes (section 3.3, multi-crop). The
codes come from the batch alone, without a queue of earlier features, and the prototypes learn from the first step.

The defaults are those of lightly's CIFAR-10 benchmark, a head of 512 and 128 and 512 prototypes, and the paper's
temperature 0.1, epsilon 0.05 and 3 iterations. The prototypes are normalised in the forward pass; the paper's code
normalises them after each step.

Shapes: V views, B images, D embedding, P projection, M prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import (
    TEMPERATURE,
    WIDTH,
    Method,
    by_view,
    cosine,
    in_float32,
    in_sizes,
    mlp,
    out_dim,
    over_pairs,
    require,
    spread,
    unit,
)
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class SwAVSettings:
    """The loss, the projection head and the clusters."""

    temperature: float = 0.1
    """Divides the scores that predict."""
    epsilon: float = 0.05
    """Divides the scores that assign; the smaller, the harder."""
    iterations: int = 3
    """Of Sinkhorn and Knopp."""
    hidden: int = 512
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of what is compared with the prototypes."""
    prototypes: int = 512
    """Clusters."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, epsilon=TEMPERATURE, iterations=(1, 1000))
        require(self, hidden=WIDTH, projection=WIDTH, prototypes=WIDTH)


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, share: Share = WHOLE) -> Tensor:
    """Assign images to prototypes so that each prototype gets an equal part (SwAV, equations 3 to 5; Cuturi 2013).

    It is computed on logarithms, since exp(scores / epsilon) may overflow.

    Args:
        scores: float (B, M).
        epsilon: divides the scores; above 0.
        iterations: iterations of Sinkhorn and Knopp.
        share: the share of this process; the images of all processes fill the prototypes.

    Returns:
        float32 (B, M): rows sum to 1, and with more iterations the sums of columns approach B / M. It has no gradient.
    """
    log = scores / epsilon
    for _ in range(iterations):
        log = log - share.stack(log.logsumexp(dim=0)).logsumexp(dim=0)  # equal columns
        log = log - log.logsumexp(dim=1, keepdim=True)  # rows sum to 1
    return log.exp()


@in_float32
def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """The cross-entropy between the codes of a view and the scores of another (SwAV, equation 2), mean over images.

    Args:
        scores, codes: float (B, M); rows of codes sum to 1.
        temperature: above 0.

    Returns:
        A scalar of at least 0. Half precision is computed in float32.
    """
    return -(codes * (scores / temperature).log_softmax(dim=1)).sum(dim=1).mean()


class SwAV(Method):
    """Encoder, projector and prototypes."""

    title = "SwAV"
    paper = "Caron et al. 2020, https://arxiv.org/abs/2006.09882"
    gist = "a view predicts the other's cluster; clusters are equally full"
    needs = "prototypes"
    takes_local = True
    Settings = SwAVSettings

    def __init__(self, encoder: nn.Module, settings: SwAVSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection])
        self.prototypes = nn.Parameter(unit(torch.randn(s.prototypes, s.projection)))
        self.settings = s

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        z = by_view(self.projector(in_sizes(self.encoder, views)), views)
        return cosine(z, self.prototypes), z.detach()  # (V, B, M), (V, B, P)

    def loss(self, scores: Tensor, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.settings
        codes = [sinkhorn(view, s.epsilon, s.iterations, share) for view in self.large(scores)]  # each (B, M)
        loss = over_pairs(lambda a, b: swapped_prediction(a, b, s.temperature), scores, codes)
        return loss, {"spread": spread(z, share)}
