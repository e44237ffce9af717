"""SwAV: one view predicts the cluster of another; clusters are kept equally full.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, https://arxiv.org/abs/2006.09882. With V views each predicts the codes of every other: the
mean over all ordered pairs. Small views predict, and get no code (section 3.3, multi-crop). Codes come from the batch
alone (no queue of earlier features), and prototypes learn from the first step.

Defaults: lightly's CIFAR-10 benchmark: a head of 512 and 128, 512 prototypes; the paper's temperature 0.1, epsilon 0.05
and 3 iterations. The prototypes are normalised in the forward pass, where the paper's code does it after each step.

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
    """Assign images to prototypes so that each takes an equal part (SwAV, equations 3 to 5; Cuturi 2013).

    Computed on logarithms, where exp(scores / epsilon) cannot overflow.

    Args:
        scores: float (B, M).
        share: whose images these are; the prototypes are filled by those of all.

    Returns:
        float32 (B, M): rows sum to 1; the more iterations, the nearer are the columns' sums to B / M. No gradient.
    """
    log = scores / epsilon
    for _ in range(iterations):
        log = log - share.stack(log.logsumexp(dim=0)).logsumexp(dim=0)  # each prototype the same
        log = log - log.logsumexp(dim=1, keepdim=True)  # each image one
    return log.exp()


@in_float32
def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of a view's scores with the codes of another (SwAV, equation 2), mean over the images.

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
