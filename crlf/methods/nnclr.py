"""NNCLR: the positive of a view is the nearest neighbour of another view of its image, in a queue of earlier images.

Dwibedi, Aytar, Tompson, Sermanet and Zisserman, With a Little Help from My Friends: Nearest-Neighbor Contrastive
Learning of Visual Representations, ICCV 2021, https://arxiv.org/abs/2104.14548. With V views the loss is the mean over
all ordered pairs of views; with two it is the paper's symmetric one. As in the paper, only the first view is queued.

Defaults: the queue and heads of lightly's CIFAR-10 benchmark (4,096 rows; 2048 and 256, 4096 in the predictor), the
paper's temperature 0.1.

Shapes: V views, B images, D embedding, P projection, K queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.methods.base import (
    TEMPERATURE,
    WIDTH,
    Method,
    Queue,
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
class NNCLRSettings:
    """The loss, the heads and the queue."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    projection: int = 256
    """Width of the projections, which the loss compares."""
    predictor: int = 4096
    """Width of the predictor's hidden layer."""
    queue: int = 4096
    """Number of earlier projections in which neighbours are searched."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH, predictor=WIDTH, queue=(1, 2**24))


@torch.no_grad()
def nearest(z: Tensor, support: Tensor) -> Tensor:
    """The row of the support set with the highest cosine (NNCLR, equation 2): (..., P) and (K, P) -> (..., P)."""
    return support[cosine(z, support).argmax(dim=-1)]


@in_float32
def nnclr(neighbours: Tensor, p: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The cross-entropy of each neighbour's own prediction among those of the batch (NNCLR, equation 3).

    Args:
        neighbours: float (B, P), the nearest neighbours of a view of each image.
        p: float (B, P), predictions of another view; row i of both is image i. They need not be normalised.
        temperature: above 0.
        share: whose images these are; the mean is over these.

    Returns:
        A scalar of at least 0, mean over the images. Half precision is computed in float32.
    """
    logits = cosine(neighbours, share.gather(p)) / temperature  # (b, B)
    return F.cross_entropy(logits, share.numbers(len(p), p.device))


class NNCLR(Method):
    """Encoder, projector and predictor, and a queue of projections."""

    title = "NNCLR"
    paper = "Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548"
    gist = "the positive is a neighbour from earlier images"
    needs = "a queue, a predictor"
    loss_falls = True
    Settings = NNCLRSettings

    def __init__(self, encoder: nn.Module, settings: NNCLRSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection], last_norm=True)
        self.predictor = mlp([s.projection, s.predictor, s.projection])
        self.queue = Queue(s.queue, s.projection)
        self.temperature = s.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        z = self.projector(self.encoder(torch.cat(list(views))))  # (V B, P)
        return by_view(self.predictor(z), views), by_view(z.detach(), views)  # each (V, B, P)

    def loss(self, p: Tensor, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        neighbours = nearest(z, self.queue.rows)  # (V, B, P)
        self.queue.push(share.gather(z[0]))
        return over_pairs(lambda a, b: nnclr(a, b, self.temperature, share), neighbours, p), {}
