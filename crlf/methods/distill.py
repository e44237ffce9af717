"""Distillation: an encoder learns to predict the features of a frozen teacher.

The teacher sees each whole image once, before the first step. The encoder sees views of it, so it learns to ignore
their differences. The losses, by the setting `agree`:

cosine        1 minus the cosine of the projection and the teacher's features, after subtracting their mean
smooth-l1     the smooth L1 distance from the features, scaled to a standard deviation of 1 (Wei et al. 2022,
              Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature Distillation,
              https://arxiv.org/abs/2205.14141, which whitens them too)
similarities  the cross-entropy between similarities of the images in the batch (Fang et al. 2021, SEED,
              https://arxiv.org/abs/2101.04731, which uses a queue)
both          the sum of cosine and similarities

docs/distil.md compares them.

Shapes: V views, B images of a batch, N images in all, D embedding, T the teacher's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.errors import unknown
from crlf.methods.base import TEMPERATURE, WIDTH, TaughtMethod, by_view, cosine, in_float32, mlp, out_dim, require, unit
from crlf.runtime.sharing import WHOLE, Share

AGREEING = 512  # images of a batch whose agreement is logged: it is over all pairs, and would outgrow the loss


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The teacher, the loss and the projection head."""

    teacher: str = ""
    """The teacher: timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, or a run or classifier folder; by default the initial
    weights of --init."""
    teacher_size: int = 0
    """Side in pixels of the teacher's images. 0: for image files, the size it was trained on; else that of the
    images."""
    agree: str = "similarities"
    """The loss: cosine, smooth-l1, similarities, or both (cosine and similarities)."""
    temperature: float = 0.1
    """Temperature of the similarities."""
    hidden: int = 256
    """Width of the projector's hidden layer."""

    def __post_init__(self) -> None:
        if self.agree not in LOSSES:
            raise unknown("agree", self.agree, LOSSES)
        require(self, temperature=TEMPERATURE, hidden=WIDTH, teacher_size=(0, 4096))


@in_float32
def cosine_loss(z: Tensor, taught: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """Mean of 1 - cosine: float (V, B, T) and (B, T) -> a scalar in 0..2."""
    return 1 - (unit(z) * unit(taught)).sum(dim=-1).mean()


@in_float32
def smooth_l1(z: Tensor, taught: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """Smooth L1, beta 1, mean over all numbers: float (V, B, T) and (B, T) -> a scalar of at least 0."""
    return F.smooth_l1_loss(z, taught.expand_as(z))


@in_float32
def similarities(z: Tensor, taught: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The cross-entropy of two distributions over the batch, the mean over views: whom an image resembles by the
    teacher, and by the encoder (SEED, equation 4). An image is not asked about itself.

    Args:
        z: float (V, B, T).
        taught: float (B, T).
        share: whose images these are; the mean is over these.

    Returns:
        A scalar of at least 0; log(B - 1) when all cosines are equal.
    """
    asked, own = unit(taught), unit(z)
    others, columns = share.gather(asked), share.gather(own, dim=1)  # (B, T), (V, B, T)
    itself = share.numbers(len(asked), z.device)[:, None] == torch.arange(len(others), device=z.device)
    wanted = (asked @ others.T / temperature).masked_fill(itself, -torch.inf).softmax(dim=1)  # (b, B)
    given = (own @ columns.mT / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=2)  # (V, b, B)
    return -(wanted * given.masked_fill(itself, 0)).sum(dim=2).mean()


@in_float32
def both(z: Tensor, taught: Tensor, temperature: float, share: Share = WHOLE) -> Tensor:
    """The sum of `cosine_loss` and `similarities`."""
    return cosine_loss(z, taught, temperature) + similarities(z, taught, temperature, share)


@torch.no_grad()
def agreement(z: Tensor, taught: Tensor) -> Tensor:
    """The correlation of who resembles whom: of the cosines of all pairs of images by the encoder, float (B, T), with
    those by the teacher, float (B, T). A scalar in -1..1; 0 where all are alike."""
    one, other = off_mean(cosine(z, z)), off_mean(cosine(taught, taught))
    return (one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-12)


def off_mean(square: Tensor) -> Tensor:
    """(B, B) less the mean off its diagonal, which becomes 0."""
    itself = torch.eye(len(square), dtype=torch.bool, device=square.device)
    mean = square.masked_fill(itself, 0).sum() / (len(square) * (len(square) - 1))
    return (square - mean).masked_fill(itself, 0)


LOSSES: dict[str, Callable[[Tensor, Tensor, float, Share], Tensor]] = {
    "cosine": cosine_loss,
    "smooth-l1": smooth_l1,
    "similarities": similarities,
    "both": both,
}


class Distill(TaughtMethod):
    """Encoder, and a projector to the teacher's features."""

    title = "Distillation"
    paper = "Fang et al. 2021, https://arxiv.org/abs/2101.04731"
    gist = "the encoder learns what a frozen teacher gives for the image"
    needs = "a teacher"
    loss_falls = True
    Settings = DistillSettings

    def __init__(self, encoder: nn.Module, settings: DistillSettings):
        super().__init__()
        self.encoder = encoder
        self.settings = settings
        self.projector: nn.Module = nn.Identity()  # until it is known how wide the features are

    def learn_from(self, features: Tensor) -> None:
        """Keep the features, of mean 0 and, each, deviation 1 (smooth L1) or together 1; make the projector."""
        centred = features - features.mean(dim=0)
        scale = centred.std(dim=0) if self.settings.agree == "smooth-l1" else centred.std()
        self.register_buffer("features", centred / scale.clamp_min(1e-6), persistent=False)
        self.projector = mlp([out_dim(self.encoder), self.settings.hidden, features.shape[1]])

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, T)

    def loss(self, z: Tensor, rows: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        taught = self.features[rows]  # (B, T)
        found = LOSSES[self.settings.agree](z, taught, self.settings.temperature, share)
        first, theirs = share.gather(z[0].detach())[:AGREEING], share.gather(taught)[:AGREEING]
        return found, {"teacher_agreement": agreement(first, theirs)}
