"""A method of your own, without touching the package: SimCLR with the hardest negative alone (a triplet loss).

    python examples/new_method.py

A method that stays is one file in crlf/methods/ and one line: docs/add-a-method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import crlf
from crlf.methods import METHODS
from crlf.methods.base import Method, by_view, cosine, mlp, out_dim, require


@dataclass(frozen=True, kw_only=True)
class TripletSettings:
    """The loss."""

    margin: float = 0.3
    """How much nearer another view of an image must be than the nearest other image."""

    def __post_init__(self) -> None:
        require(self, margin=(0, 2))


class Triplet(Method):
    """Encoder and projector; the loss of Schroff et al. 2015, FaceNet, with the hardest negative of the batch."""

    title, loss_falls, Settings = "Triplet", True, TripletSettings

    def __init__(self, encoder: torch.nn.Module, settings: TripletSettings):
        super().__init__()
        self.encoder, self.margin = encoder, settings.margin
        self.projector = mlp([out_dim(encoder), 128, 64])

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (by_view(self.projector(self.encoder(torch.cat(list(views)))), views),)  # (V, B, P)

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        near = cosine(z[0], z[1])  # (B, B)
        itself = torch.eye(len(near), dtype=torch.bool, device=near.device)
        hardest = near.masked_fill(itself, -2).amax(dim=1)
        return (self.margin + hardest - near.diagonal()).relu().mean(), {"hardest": hardest.mean().detach()}


if __name__ == "__main__":
    METHODS["triplet"] = Triplet
    run = crlf.pretrain(
        crlf.Recipe(method="triplet", data="shapes", views=2, epochs=5), out="example_run", overwrite=True
    )
    crlf.embed(run)
    print(f"kNN {100 * crlf.probe(run, probes='knn')['knn_accuracy']:.1f} %")
