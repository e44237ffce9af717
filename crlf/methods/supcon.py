"""SupCon: SimCLR with labels; every view of every image of the same class is a positive.

Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, https://arxiv.org/abs/2004.11362. The one method that is
given labels: an upper mark for the others, not one of them.

Defaults: the authors' code on CIFAR-10: temperature 0.1, a head of 512 and 128 without batch norm.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import TEMPERATURE, WIDTH, SupervisedMethod, by_view, cosine, in_float32, mlp, out_dim, require
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class SupConSettings:
    """The loss and the projection head."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    hidden: int = 512
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of the projections, which the loss compares."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH)


@in_float32
def sup_con(z: Tensor, labels: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The supervised contrastive loss (SupCon, equation 2: the sum over positives outside of the logarithm).

    Args:
        z: float (V, B, P), projections, V at least 2; they need not be normalised.
        labels: int64 (B,).
        temperature: above 0.
        share: whose images these are; the mean is over these.

    Returns:
        A scalar of at least 0, the mean over all V B views; log(V B - 1) when all projections are equal. Half
        precision is computed in float32. Memory grows with the square of V B.
    """
    V, b, _ = z.shape
    z, all_labels = z.flatten(0, 1), share.gather(labels)  # (V b, P), (B,)
    columns = share.gather_views(z, V)  # (V B, P)
    view = torch.arange(V, device=z.device)[:, None] * len(all_labels)
    place = (view + share.numbers(b, z.device)).flatten()  # of the own rows among the columns, (V b,)
    itself = place[:, None] == torch.arange(V * len(all_labels), device=z.device)  # (V b, V B)
    logits = (cosine(z, columns) / temperature).masked_fill(itself, -torch.inf)
    positive = (labels.repeat(V)[:, None] == all_labels.repeat(V)) & ~itself
    log_share = logits - logits.logsumexp(dim=1, keepdim=True)
    return -(log_share.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()


class SupCon(SupervisedMethod):
    """Encoder and projector under the supervised contrastive loss."""

    title = "SupCon"
    paper = "Khosla et al. 2020, https://arxiv.org/abs/2004.11362"
    gist = "all images of a class attract"
    needs = "**labels**"
    loss_name = "SupCon"
    loss_falls = True
    Settings = SupConSettings

    def __init__(self, encoder: nn.Module, settings: SupConSettings):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), settings.hidden, settings.projection], norm=False)
        self.temperature = settings.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, labels: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return sup_con(z, labels, self.temperature, share), {}
