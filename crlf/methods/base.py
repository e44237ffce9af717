"""What a method is, and the head that most of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Method(nn.Module):
    """An encoder in training: it owns what else the paper needs (projector, predictor, target, queue).

    A subclass has a `Settings` dataclass and takes `(encoder, settings)`. It never sees labels.
    """

    Settings: type[Any]
    encoder: nn.Module

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Two or more views, each float (B, C, h, w) -> the scalar loss, and detached scalars for the log."""
        raise NotImplementedError  # the one abstract method

    def after_step(self, progress: float) -> None:
        """Called after the optimizer, with the share of the steps done; for targets that follow the weights."""


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear, batch norm and ReLU between the given sizes; the last layer is Linear alone."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes[:-2], sizes[1:-1], strict=True)):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
        assert i < 8, "a projection head is not that deep"
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
