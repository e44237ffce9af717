"""LARS: SGD whose step is, weight by weight, a share of that weight's length (You et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crlf.optim.updates import add_scaled, momentum_buffer


@dataclass(frozen=True)
class LarsKind:
    """The differences between published implementations of LARS."""

    rate_inside: bool
    """Whether the learning rate scales the input of the momentum, or the momentum; equal if it is constant."""
    of_sum: bool
    """Whether the step is a share of |w| / |g + decay w|, or of |w| / (|g| + decay |w|)."""
    clipped: bool
    """Whether that share is at most the learning rate, so that the step is never longer than SGD's."""


LARS_OF = {
    "paper": LarsKind(True, False, False),  # You et al. 2017, equation 6 and algorithm 1
    "simclr": LarsKind(True, True, False),  # lars_optimizer.py of google-research/simclr; optax.lars, which BYOL took
    "barlow": LarsKind(False, True, False),  # main.py of facebookresearch/barlowtwins; VICReg's too
    "solo-learn": LarsKind(False, False, True),  # solo/utils/lars.py with clip_lr, as in all of its recipes
}


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is, weight by weight, a share of that weight's length.

    You, Gitman and Ginsburg 2017, https://arxiv.org/abs/1708.03888, equation 6 and algorithm 1. A group with `trust` 0
    is plain SGD: so norms and biases, as SimCLR, BYOL and Barlow Twins have it.

    Args:
        kind: one of LARS_OF.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, kind: str = "paper"):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "trust": 0.0, "kind": kind})

    @property
    def kind(self) -> LarsKind:
        """From the defaults, which a copy of an optimizer keeps."""
        return LARS_OF[self.defaults["kind"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = p.grad.add(p, alpha=group["weight_decay"])
                if group["trust"]:
                    direction = direction * self.share(p, p.grad, direction, group)
                buffer = momentum_buffer(self, p)
                buffer.mul_(group["momentum"])
                if self.kind.rate_inside:
                    add_scaled(buffer, direction, group["lr"], 1.0)
                    p.sub_(buffer)
                else:
                    buffer.add_(direction)
                    add_scaled(p, buffer, group["lr"], -1.0)

    def share(self, weight: Tensor, gradient: Tensor, direction: Tensor, group: dict[str, Any]) -> Tensor:
        """The factor of a weight's direction, a scalar; 1 if the weight or the gradient is 0."""
        w, g = weight.norm(), gradient.norm()
        length = direction.norm() if self.kind.of_sum else g + group["weight_decay"] * w
        found = torch.where((w > 0) & (g > 0), group["trust"] * w / length, 1.0)
        if self.kind.clipped:
            found = torch.where((w > 0) & (g > 0), (found / group["lr"]).clamp(max=1.0), 1.0)
        return found
