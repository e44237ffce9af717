"""SimCLR: two views of an image attract, the views of all other images repel.

Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
https://arxiv.org/abs/2002.05709. With more than two views of an image, every pair of them is a positive pair. Small
views are compared with large ones alone (Caron et al. 2020, SwAV, section 3.3, which adds them to SimCLR too).

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.errors import InputError, unknown
from crlf.methods.base import (
    TEMPERATURE,
    WIDTH,
    Method,
    by_view,
    in_float32,
    in_sizes,
    mlp,
    out_dim,
    require,
)
from crlf.methods.negatives import over_negatives
from crlf.runtime.sharing import WHOLE, Share

NORMS = ("none", "hidden", "all")  # layers of the projector that batch norm follows


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings:
    """The loss and the projection head."""

    temperature: float = 0.2
    """Divides the cosine similarities."""
    hidden: int = 256
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of the projections, which the loss compares."""
    projector_layers: int = 2
    """Linear layers of the projector; all but the last are hidden."""
    projector_norms: str = "hidden"
    """Where the projector has batch norm: none, hidden, or all, the last layer too, as Google's SimCLR."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, hidden=WIDTH, projection=WIDTH, projector_layers=(1, 16))
        if self.projector_norms not in NORMS:
            raise unknown("projector_norms", self.projector_norms, NORMS)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy (SimCLR, equation 1), mean over all 2B views.

    Args:
        z1, z2: float (B, P), the projections of the two views; row i of both is image i. B is at least 2. They need
            not be normalised. Half precision is computed in float32.
        temperature: above 0.

    Returns:
        A scalar of at least 0; log(2B - 1) when all projections are equal.

    Raises:
        InputError: B is 1 (there is no negative), or the shapes differ.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise InputError(f"z1 and z2 must both be (B, P), not {tuple(z1.shape)} and {tuple(z2.shape)}")
    return nt_xent_views(torch.stack([z1, z2]), temperature)


def nt_xent_views(z: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """NT-Xent over V views: the mean of equation 1 over all ordered pairs of two views of the same image.

    Args:
        z: float (V, B, P), V and B at least 2; see `over_negatives`.
    """
    return over_negatives(z, temperature, _cross_entropy, share)


@in_float32
def nt_xent_small(small: Tensor, large: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """NT-Xent of small views: the mean of equation 1 over all pairs of a small view and a large one of the same image.

    The negatives of a small view are the V (B - 1) large views of other images.

    Args:
        small: float (L, B, P); large: float (V, B, P), B at least 2. They need not be normalised.
        temperature: above 0.
        share: whose images these are; the mean is over these.
    """
    columns = share.gather(F.normalize(large, dim=2), dim=1)  # (V, B, P)
    logits = torch.einsum("lbp,vcp->lbvc", F.normalize(small, dim=2), columns) / temperature
    own, everyone = share.numbers(small.shape[1], small.device), torch.arange(columns.shape[1], device=small.device)
    same_image = (own[:, None] == everyone)[:, None]  # (b, 1, B)
    negatives = logits.masked_fill(same_image, -torch.inf).flatten(2).logsumexp(dim=2)  # (L, b)
    positives = share.own_columns(logits).diagonal(dim1=1, dim2=3).mT  # (L, b, V)
    return _cross_entropy(positives, negatives[:, :, None]).mean()


def _cross_entropy(positives: Tensor, negatives: Tensor) -> Tensor:
    """-log(e^positive / (e^positive + sum of e^negative)): (V B, V - 1) and (V B, 1) -> (V B, V - 1)."""
    return torch.logaddexp(positives, negatives) - positives


class SimCLR(Method):
    """Encoder and projector under NT-Xent."""

    title = "SimCLR"
    paper = "Chen et al. 2020, https://arxiv.org/abs/2002.05709"
    gist = "views of an image attract, those of all others in the batch repel"
    needs = "negatives: a large batch"
    loss_name = "NT-Xent"
    loss_falls = True
    takes_local = True
    Settings = SimCLRSettings

    def __init__(self, encoder: nn.Module, settings: SimCLRSettings):
        super().__init__()
        self.encoder = encoder
        sizes = [out_dim(encoder), *[settings.hidden] * (settings.projector_layers - 1), settings.projection]
        norms = settings.projector_norms
        self.projector = mlp(sizes, norm=norms != "none", last_norm=norms == "all")
        self.temperature = settings.temperature

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = in_sizes(self.encoder, views)  # (V B, D): batch norm sees all views of a size together
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        large = self.large(z)
        loss = nt_xent_views(large, self.temperature, share)
        if self.local_views:  # each view has a pair with every other large one
            small, others = nt_xent_small(z[len(large) :], large, self.temperature, share), len(large) - 1
            loss = (others * loss + self.local_views * small) / (others + self.local_views)
        return loss, {}

    @staticmethod
    def candidates(views: int, batch: int) -> int:
        return views * (batch - 1) + 1  # the positive, and each view of the other images
