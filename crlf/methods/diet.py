"""DIET: every image is a class of its own, and a linear layer on the encoder tells them apart.

Balestriero, Unsupervised Learning on a DIET: Datum IndEx as Target Free of Self-Supervision, Reconstruction, Projector
Head, 2023, https://arxiv.org/abs/2302.10260. There is no projector and no comparison within a batch, so that small
batches do; each view is classified alone. It is made for small sets: the layer has a row for each image.

Defaults: the label smoothing of 0.8 that the paper finds to matter most.

Shapes: V views, B images of a batch, N images in all, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.errors import InputError
from crlf.methods.base import IndexedMethod, by_view, in_float32, out_dim, require
from crlf.runtime.sharing import WHOLE, Share

LARGEST = 200_000  # images: the layer then has as many rows, and every view as many logits


@dataclass(frozen=True, kw_only=True)
class DIETSettings:
    """The loss."""

    label_smoothing: float = 0.8
    """Share of the target that is spread evenly over all images."""

    def __post_init__(self) -> None:
        require(self, label_smoothing=(0, 0.999))


@in_float32
def diet(logits: Tensor, rows: Tensor, label_smoothing: float) -> Tensor:
    """The cross-entropy of each view with its image as the class, label-smoothed, mean over all views.

    Args:
        logits: float (V, B, N). Half precision is computed in float32.
        rows: int64 (B,), the number of each image among all.
        label_smoothing: in 0..1, 1 left out.

    Returns:
        A scalar of at least 0; log(N) when all logits are equal.
    """
    return F.cross_entropy(logits.flatten(0, 1), rows.repeat(len(logits)), label_smoothing=label_smoothing)


class DIET(IndexedMethod):
    """Encoder and a linear layer with a class for each image."""

    title = "DIET"
    paper = "Balestriero 2023, https://arxiv.org/abs/2302.10260"
    gist = "every image is a class of its own"
    needs = "few images; many epochs"
    loss_name = "DIET"
    loss_falls = True
    Settings = DIETSettings

    def __init__(self, encoder: nn.Module, settings: DIETSettings):
        super().__init__()
        self.encoder = encoder
        self.label_smoothing = settings.label_smoothing
        self.classifier: nn.Module = nn.Identity()  # until it is known how many images there are

    def meet(self, images: int) -> None:
        """Make the layer.

        Raises:
            InputError: there are too many images.
        """
        if images > LARGEST:
            raise InputError(f"method 'diet' has a class for each image: it takes {LARGEST:,} at most, not {images:,}")
        self.classifier = nn.Linear(out_dim(self.encoder), images, bias=False)

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.classifier(h), views),)  # (V, B, N)

    def loss(self, logits: Tensor, rows: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return diet(logits, rows, self.label_smoothing), {}
