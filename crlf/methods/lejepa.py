"""LeJEPA: each view predicts the mean of all views, and projections should follow a standard normal distribution.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025,
https://arxiv.org/abs/2511.08544. The regulariser, SIGReg, tests random one-dimensional projections for normality (Epps
and Pulley 1983). Small views predict the mean of the large ones, and are not part of it (algorithm 2). There is no
target network, no stopped gradient and no predictor; `spread` in the log shows a collapse.

The defaults are those of the authors' minimal example (weight 0.02, a head of 2048, 2048 and 128, 256 directions, 17
knots up to 3). As in their code, the prediction loss is a mean over the features; the paper writes a sum.

Shapes: V views, B images, D embedding, P projection, K directions, T knots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crlf.methods.base import SHARE, WIDTH, Method, by_view, in_float32, in_sizes, mlp, out_dim, require, spread, unit
from crlf.runtime.sharing import WHOLE, Share

SEEDS = 2**62


@dataclass(frozen=True, kw_only=True)
class LeJEPASettings:
    """The loss and the projection head."""

    sigreg: float = 0.02
    """Weight of the test of normality; the prediction has what is left of 1."""
    directions: int = 256
    """Random directions that a step tests."""
    knots: int = 17
    """Points at which the characteristic functions are compared."""
    furthest: float = 3.0
    """The last of these points; the first is 0."""
    hidden: int = 2048
    """Width of the projector's two hidden layers."""
    projection: int = 128
    """Width of the projections, which the loss compares."""

    def __post_init__(self) -> None:
        require(self, sigreg=SHARE, directions=WIDTH, knots=(2, 1001), furthest=(1e-3, 100))
        require(self, hidden=WIDTH, projection=WIDTH)


@in_float32
def sigreg(z: Tensor, directions: Tensor, knots: int, furthest: float, share: Share = WHOLE) -> Tensor:
    """SIGReg (LeJEPA, algorithm 1): the distance of the projections' distribution from a standard normal one.

    The statistic of Epps and Pulley is B times the integral over t of |f(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), where f
    is the characteristic function of the B projections on a direction. The result is its mean over directions and
    views. The integrand is even, so the trapezoidal rule integrates from 0 to `furthest` and doubles the result.

    Args:
        z: float (V, B, P), projections.
        directions: float (K, P), rows of length 1.
        knots: points of the trapezoidal rule, 2 or more.
        share: the share of this process; the distribution is that of the whole batch.

    Returns:
        A scalar of at least 0. Half precision is computed in float32.
    """
    t = torch.linspace(0, furthest, knots, device=z.device, dtype=z.dtype)
    normal = (-t.square() / 2).exp()  # the characteristic function of a standard normal, and the weight
    weights = 2 * normal * furthest / (knots - 1)
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    angles = (z @ directions.mT)[..., None] * t  # (V, B, K, T)
    real, imaginary = share.average(torch.stack([angles.cos().mean(dim=1), angles.sin().mean(dim=1)]))  # (V, K, T)
    apart = (real - normal).square() + imaginary.square()
    return share.count(z.shape[1]) * (apart @ weights).mean()


@in_float32
def prediction(z: Tensor, centre: Tensor) -> Tensor:
    """The mean squared difference between each view and the mean view of its image (LeJEPA, algorithm 2).

    Args:
        z: float (V, B, P), projections of all views.
        centre: float (B, P), the mean projection of the large views.
    """
    return (z - centre).square().mean()


class Directions(nn.Module):
    """Random directions, float (K, P) with rows of length 1, which are drawn again after each step.

    They are a function of a seed and of the number of draws, so all ranks have the same. A replayed CUDA graph reads
    them in place, and a checkpoint holds the seed and the number of draws.
    """

    rows: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("rows", unit(torch.randn(count, width)))
        self.seed, self.drawn = int(torch.randint(SEEDS, ())), 0

    @torch.no_grad()
    def renew(self) -> None:
        self.drawn += 1
        stream = torch.Generator(self.rows.device).manual_seed(self.seed + self.drawn)
        self.rows.copy_(unit(torch.randn(self.rows.shape, generator=stream, device=self.rows.device)))

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.seed, self.drawn])

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.drawn = state.tolist()


class LeJEPA(Method):
    """Encoder and projector."""

    title = "LeJEPA"
    paper = "Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544"
    gist = "views predict their mean; features are normally distributed"
    needs = "nothing else: no target, no predictor"
    loss_name = "LeJEPA"
    loss_falls = True
    takes_local = True
    Settings = LeJEPASettings

    def __init__(self, encoder: nn.Module, settings: LeJEPASettings):
        super().__init__()
        s = settings
        self.encoder = encoder
        self.projector = mlp([out_dim(encoder), s.hidden, s.hidden, s.projection])
        self.directions = Directions(s.directions, s.projection)
        self.settings = s

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = in_sizes(self.encoder, views)  # (V B, D)
        return (by_view(self.projector(h), views),)  # (V, B, P)

    def loss(self, z: Tensor, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.settings
        predicted = prediction(z, self.large(z).mean(dim=0))
        tested = sigreg(z, self.directions.rows, s.knots, s.furthest, share)
        loss = (1 - s.sigreg) * predicted + s.sigreg * tested
        return loss, {"spread": spread(z, share), "prediction": predicted.detach(), "sigreg": tested.detach()}

    def after_step(self, progress: float) -> None:
        self.directions.renew()
