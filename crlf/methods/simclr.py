"""SimCLR: two views of an image attract, the views of all other images repel.

Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
https://arxiv.org/abs/2002.05709. With more than two views of an image, every pair of them is a positive pair.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crlf.errors import InputError
from crlf.methods.base import Method, mlp

LOGITS = 2**24  # at most this many at a time, 64 MB in float32


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings:
    """The loss and the projection head."""

    temperature: float = 0.2
    """Divides the cosine similarities."""
    hidden: int = 256
    """Width of the projector's hidden layer."""
    projection: int = 128
    """Width of what the loss compares."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.temperature <= 100:
            raise InputError(f"temperature must be in 0.001..100, not {self.temperature}")
        for name in ("hidden", "projection"):
            if not 1 <= getattr(self, name) <= 65536:
                raise InputError(f"{name} must be in 1..65536, not {getattr(self, name)}")


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


def nt_xent_views(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent over V views: the mean of equation 1 over all ordered pairs of two views of the same image.

    The negatives of a pair are the V (B - 1) views of other images; a third view of the same image is in neither
    the numerator nor the denominator. When there are more than `LOGITS` logits they are made some rows at a time, and
    once more in the backward pass, so that memory grows with V B and not with its square.

    Args:
        z: float (V, B, P), V and B at least 2.
    """
    V, B, _ = z.shape
    if B < 2:
        raise InputError(f"NT-Xent needs at least 2 images in a batch, not {B}: the others are the negatives")
    z = F.normalize(z.flatten(0, 1).to(torch.promote_types(z.dtype, torch.float32)), dim=1)  # (V B, P)
    rows = torch.arange(V * B, device=z.device).split(max(1, LOGITS // (V * B)))
    if len(rows) == 1:
        return _losses(z, rows[0], B, temperature).mean()
    parts = [checkpoint(_losses, z, part, B, temperature, use_reentrant=False) for part in rows]
    return torch.cat(parts).mean()


def _losses(z: Tensor, row: Tensor, B: int, temperature: float) -> Tensor:
    """The losses of the pairs that begin with these rows of z: (R,) of (V B, P) normalised -> (R, V - 1)."""
    V = len(z) // B
    with torch.autocast(z.device.type, enabled=False):
        logits = z[row] / temperature @ z.T  # (R, V B)
    partners = (row[:, None] + B * torch.arange(1, V, device=z.device)) % (V * B)  # (R, V - 1)
    positives = logits.gather(1, partners)
    same_image = row[:, None] % B == torch.arange(V * B, device=z.device) % B
    negatives = logits.masked_fill(same_image, -torch.inf).logsumexp(dim=1, keepdim=True)  # (R, 1)
    return torch.logaddexp(positives, negatives) - positives


class SimCLR(Method):
    """Encoder and projector under NT-Xent."""

    Settings = SimCLRSettings

    def __init__(self, encoder: nn.Module, settings: SimCLRSettings):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp([encoder.out_dim, settings.hidden, settings.projection])  # type: ignore[list-item]
        self.temperature = settings.temperature

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D): batch norm sees all views together
        z = self.projector(h).unflatten(0, (len(views), -1))  # (V, B, P)
        return nt_xent_views(z, self.temperature), {}
