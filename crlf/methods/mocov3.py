"""MoCo v3: a predicted query finds its key among the keys of the batch, made by a slowly moving encoder; no queue.

Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021,
https://arxiv.org/abs/2104.02057. With V views the loss is the mean over all ordered pairs of views; with two, half of
the paper's sum. The fixed random patch projection that it advises belongs to the encoder.

Defaults: solo-learn's CIFAR recipe (temperature 0.2, momentum 0.99 to 1, heads of 4096 and 256); the heads have the
paper's two layers for a ResNet.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    mlp,
    out_dim,
    over_pairs,
    require,
)
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class MoCov3Settings:
    """The loss, the heads and the target."""

    temperature: float = 0.2
    """Divides the cosine similarities."""
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    projection: int = 256
    """Width of the projections, which the loss compares."""
    target_momentum: float = 0.99
    """Momentum of the target's moving average at the start."""
    target_momentum_end: float = 1.0
    """Momentum at the end, reached along a cosine."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH)
        require(self, target_momentum=SHARE, target_momentum_end=SHARE)


@in_float32
def ctr(q: Tensor, k: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The cross-entropy of each query's key among the keys of the batch (MoCo v3, equation 1 and algorithm 1).

    Args:
        q, k: float (B, P); row i of both is image i; they need not be normalised.
        temperature: above 0.
        share: whose images these are; the mean is over these.

    Returns:
        A scalar: the mean over images, times 2 temperature as in algorithm 1. Half precision is computed in float32.
    """
    logits = cosine(q, share.gather(k)) / temperature  # (b, B)
    return 2 * temperature * F.cross_entropy(logits, share.numbers(len(q), q.device))


class MoCov3(Method):
    """Encoder, projector and predictor, and a target of the first two."""

    title = "MoCo v3"
    paper = "Chen et al. 2021, https://arxiv.org/abs/2104.02057"
    gist = "a predicted query finds its key in the batch"
    needs = "a target, a predictor, a large batch"
    loss_name = "InfoNCE"
    Settings = MoCov3Settings

    def __init__(self, encoder: nn.Module, settings: MoCov3Settings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection], last_norm=True)
        self.predictor = mlp([s.projection, s.hidden, s.projection])
        self.target = Target(encoder, self.projector, start=s.target_momentum, end=s.target_momentum_end)
        self.temperature = s.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return by_view(self.predictor(self.projector(h)), views), self.target(views)  # each (V, B, P)

    def loss(self, q: Tensor, k: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return over_pairs(lambda a, b: ctr(a, b, self.temperature, share), q, k), {}

    def after_step(self, progress: float) -> None:
        self.target.follow(self.encoder, self.projector, progress=progress)
