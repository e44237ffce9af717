"""DINO: a student predicts the distribution over prototypes that a slowly moving teacher has for another view.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin, Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021, https://arxiv.org/abs/2104.14294. Centring and sharpening the teacher together prevent a collapse. If they
fail, the logged `teacher_entropy` falls to 0 or stays at log M, and `spread` falls to 0. With V views, the loss is the
mean over all ordered pairs of views; the teacher does not see small views (section 3.1, multi-crop). The last layer
learns from the first step. The paper's gradient clipping and its warm-up of the teacher's temperature are left out.

The defaults are the head of lightly's CIFAR-10 benchmark (2048 and 256 with batch norm, 2,048 prototypes) and the
paper's temperatures (0.1 and 0.04), target momentum (0.996 to 1) and centre momentum (0.9).

Shapes: V views, B images, D embedding, P projection, M prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
    unit,
)
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class DINOSettings:
    """The loss, the head and the target."""

    temperature: float = 0.1
    """Divides the student's scores."""
    target_temperature: float = 0.04
    """Divides the teacher's scores; smaller values give sharper distributions."""
    centre_momentum: float = 0.9
    """Momentum of the running mean of the teacher's scores, which is subtracted from them."""
    hidden: int = 2048
    """Width of the head's hidden layer."""
    projection: int = 256
    """Width of the projections, which are compared with the prototypes."""
    prototypes: int = 2048
    """Width of the distributions."""
    target_momentum: float = 0.996
    """Momentum of the teacher's moving average at the start."""
    target_momentum_end: float = 1.0
    """Momentum at the end, reached along a cosine."""

    def __post_init__(self) -> None:
        require(self, temperature=TEMPERATURE, target_temperature=TEMPERATURE, centre_momentum=SHARE)
        require(self, hidden=WIDTH, projection=WIDTH, prototypes=WIDTH)
        require(self, target_momentum=SHARE, target_momentum_end=SHARE)


@in_float32
def sharpened(teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distributions (DINO, equation 1 and algorithm 1): scores (..., M), centre (M,) -> (..., M)."""
    return ((teacher - centre) / temperature).softmax(dim=-1)


@in_float32
def cross_entropy(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The cross-entropy H(target, student) (DINO, equation 2), mean over the images.

    Args:
        student: float (B, M), scores.
        target: float (B, M), distributions: rows sum to 1.
        temperature: the student's, above 0.

    Returns:
        A scalar of at least 0. Half precision is computed in float32.
    """
    return -(target * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean()


class Prototypes(nn.Module):
    """Cosines with learned directions: float (B, P) -> float32 (B, M). The paper's weight-normalised last layer."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.rows = nn.Parameter(unit(torch.randn(count, width)))

    def forward(self, z: Tensor) -> Tensor:
        return cosine(z, self.rows)


class DINO(Method):
    """Encoder, projector and prototypes, a target of all three, and the centre of its scores."""

    title = "DINO"
    paper = "Caron et al. 2021, https://arxiv.org/abs/2104.14294"
    gist = "a student agrees with a slow, centred, sharp teacher"
    needs = "a target, prototypes; many steps"
    takes_local = True
    Settings = DINOSettings
    centre: Tensor

    def __init__(self, encoder: nn.Module, settings: DINOSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.projection], activation=nn.GELU)
        self.prototypes = Prototypes(s.projection, s.prototypes)
        self.target = Target(
            encoder, self.projector, self.prototypes, start=s.target_momentum, end=s.target_momentum_end
        )
        self.register_buffer("centre", torch.zeros(s.prototypes))  # (M,)
        self.settings = s

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        z = self.projector(in_sizes(self.encoder, views))  # (V B, P)
        student = self.prototypes(z)  # (V B, M)
        return by_view(student, views), self.target(self.large(views)), by_view(z.detach(), views)

    def loss(
        self, student: Tensor, teacher: Tensor, z: Tensor, share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.settings
        targets = sharpened(teacher, self.centre, s.target_temperature)
        if self.training:
            self.centre = self.centre.lerp(share.average(teacher.mean(dim=(0, 1))), 1 - s.centre_momentum)  # equation 4
        loss = over_pairs(lambda a, b: cross_entropy(a, b, s.temperature), student, targets)
        entropy = torch.special.entr(targets).sum(dim=-1).mean()
        return loss, {"spread": spread(z, share), "teacher_entropy": entropy}

    def after_step(self, progress: float) -> None:
        self.target.follow(self.encoder, self.projector, self.prototypes, progress=progress)
