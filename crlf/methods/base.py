"""What a method is, and the head that most of them share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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


def forward_flops(method: Method, views: int, channels: int, height: int, width: int) -> float:
    """Floating-point operations of a view's forward pass through a method, two for each multiply-add.

    Counted by torch on one pass; elementwise operations, norms and pools are not in it.
    """
    method = copy.deepcopy(method).eval()
    device = next(method.parameters()).device
    pair = torch.zeros(2, channels, height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method([pair] * views)
    return counter.get_total_flops() / (2 * views)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear, batch norm and ReLU between the given sizes; the last layer is Linear alone."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
