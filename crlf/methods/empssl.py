"""EMP-SSL: many small crops of an image agree with their mean, and the images spread over the sphere.

Tong, Chen, Ma and LeCun, EMP-SSL: Towards Self-Supervised Learning in One Training Epoch, 2023,
https://arxiv.org/abs/2304.03977. With 20 to 200 crops per image, each a quarter of its area, one to ten epochs are
enough. The total coding rate (Yu et al. 2020, MCR^2) prevents a collapse.

The defaults are those of the authors' code: weight 200, distortion 0.2, a head of 4096, 4096 and 1024. Their crops are
`--views 20 --crop-min 0.25 --crop-max 0.25`. They use a hidden layer of the head as the embedding, averaged over crops;
we use the encoder's output.

Shapes: V views, B images, D embedding, P projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf.methods.base import WIDTH, Method, by_view, in_float32, mlp, out_dim, require, spread, unit
from crlf.runtime.sharing import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class EMPSSLSettings:
    """The loss and the projection head."""

    invariance: float = 200.0
    """Weight of the agreement of views beside the coding rate."""
    distortion: float = 0.2
    """The squared precision at which the coding rate counts bits; the smaller, the finer."""
    hidden: int = 4096
    """Width of the projector's two hidden layers."""
    projection: int = 1024
    """Width of the projections, which the loss compares."""

    def __post_init__(self) -> None:
        require(self, invariance=(0, 1e6), distortion=(1e-6, 1e6), hidden=WIDTH, projection=WIDTH)


@in_float32
def coding_rate(z: Tensor, distortion: float, share: Share = WHOLE) -> Tensor:
    """The total coding rate, 1/2 log det(I + P / (B distortion) Z^T Z), averaged over the views.

    By Sylvester's identity, I + P / (B distortion) Z Z^T has the same determinant; the smaller matrix is used.

    Args:
        z: float (V, B, P), rows of length 1; with several processes, those of the images of this process.
        distortion: the paper's squared epsilon, above 0.
        share: the share of this process; the rate is that of the whole batch.

    Returns:
        A scalar of at least 0, at most min(B, P) / 2 log(1 + P / (min(B, P) distortion)).
    """
    B, P = share.count(z.shape[1]), z.shape[2]
    everyone = share.gather(z, dim=1) if B <= P else z
    gram = everyone @ everyone.mT if B <= P else share.total(z.mT @ z)
    matrix = torch.eye(min(B, P), device=z.device, dtype=z.dtype) + P / (B * distortion) * gram
    root, _ = torch.linalg.cholesky_ex(matrix)  # unlike `cholesky`, it does not wait for the device
    return root.diagonal(dim1=1, dim2=2).log().sum(dim=1).mean()  # half the log of the determinant


@in_float32
def agreement(z: Tensor) -> Tensor:
    """The mean cosine similarity of each view to the mean view of its image: float (V, B, P) -> a scalar in -1..1."""
    return F.cosine_similarity(z, z.mean(dim=0), dim=2).mean()


class EMPSSL(Method):
    """Encoder and projector."""

    title = "EMP-SSL"
    paper = "Tong et al. 2023, https://arxiv.org/abs/2304.03977"
    gist = "many crops agree with their mean, and images fill the sphere"
    needs = "many small views"
    loss_name = "EMP-SSL"
    loss_falls = True
    Settings = EMPSSLSettings

    def __init__(self, encoder: nn.Module, settings: EMPSSLSettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.hidden, s.projection])
        self.settings = s

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = self.encoder(torch.cat(list(views)))  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        s, z = self.settings, unit(z)
        agree, rate = agreement(z), coding_rate(z, s.distortion, share)
        stats = {"spread": spread(z, share), "agreement": agree.detach(), "coding_rate": rate.detach()}
        return -s.invariance * agree - rate, stats
