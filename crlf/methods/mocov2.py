"""MoCo v2: a query finds its key among a queue of keys of earlier images, made by a slowly moving encoder.

He, Fan, Wu, Xie and Girshick, Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
https://arxiv.org/abs/1911.05722; Chen, Fan, Girshick and He, Improved Baselines with Momentum Contrastive Learning,
2020, https://arxiv.org/abs/2003.04297 (the MLP head).

The papers take one view as query and the other as key. Here every ordered pair of views is one, and the keys of all
views enter the queue. Keys are not shuffled among devices: one device's batch norm sees the whole batch.

Defaults: those of MoCo's CIFAR-10 demo and of lightly's CIFAR-10 benchmark: 4,096 keys, momentum 0.99, temperature 0.1.
The head of 512 and 128 is lightly's; the demo's is one linear layer.

Shapes: V views, B images, D embedding, P projection, K queue.
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
    Queue,
    Target,
    by_view,
    cosine,
    in_float32,
    mlp,
    out_dim,
    over_pairs,
    require,
    unit,
)
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class MoCov2Settings:
    """The loss, the projection head, the queue and the target."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    hidden: int = 512
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of the projections, which the loss compares."""
    queue: int = 4096
    """Number of keys of earlier images kept as negatives."""
    target_momentum: float = 0.99
    """Momentum of the target's moving average at the start."""
    target_momentum_end: float = 0.99
    """Momentum at the end."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH, queue=(1, 2**24))
        require(self, target_momentum=SHARE, target_momentum_end=SHARE)


@in_float32
def moco(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of the key among the queue (MoCo, equation 1), mean over the images.

    Args:
        q, k: float (B, P), queries and their keys; they need not be normalised.
        queue: float (K, P), keys of other images.
        temperature: above 0.

    Returns:
        A scalar of at least 0; log(K + 1) when all are equal. Half precision is computed in float32.
    """
    positives = (unit(q) * unit(k)).sum(dim=1, keepdim=True)  # (B, 1)
    logits = torch.cat([positives, cosine(q, queue)], dim=1) / temperature  # (B, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


class MoCov2(Method):
    """Encoder and projector, their target, and a queue of its keys."""

    title = "MoCo v2"
    paper = "Chen et al. 2020, https://arxiv.org/abs/2003.04297"
    gist = "a query finds its key among a queue of earlier keys"
    needs = "a target (a forward pass more), a queue"
    loss_name = "InfoNCE"
    Settings = MoCov2Settings

    def __init__(self, encoder: nn.Module, settings: MoCov2Settings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection], norm=False)
        self.target = Target(encoder, self.projector, start=s.target_momentum, end=s.target_momentum_end)
        self.queue = Queue(s.queue, s.projection)
        self.temperature = s.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return by_view(self.projector(h), views), self.target(views)  # each (V, B, P)

    def loss(self, q: Tensor, k: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        keys = self.queue.rows  # of earlier steps alone: another view of the same image is no negative
        loss = over_pairs(lambda a, b: moco(a, b, keys, self.temperature), q, k)
        self.queue.push(share.gather(k, dim=1).flatten(0, 1))
        return loss, {}

    def after_step(self, progress: float) -> None:
        self.target.follow(self.encoder, self.projector, progress=progress)
