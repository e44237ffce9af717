"""Optimizers, and the learning rate as a pure function of progress.

An entry of `OPTIMIZERS` takes the named parameters of a method and the settings, and gives torch optimizers whose
parameter groups each hold a `base_lr`; the loop multiplies that by `schedule(progress)` before every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crlf.errors import InputError, unknown


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """How the weights move."""

    optimizer: str = "muon"
    """One of: muon, adam, adamw, sgd."""
    lr: float = 0.02
    """Peak learning rate (of the matrices, with Muon)."""
    vector_lr: float = 3e-3
    """With Muon: the peak learning rate of biases and norms, which AdamW moves."""
    momentum: float = 0.95
    """Of Muon and SGD."""
    weight_decay: float = 0.0
    """For matrices only; biases and norms are never decayed. Decoupled, but for adam and sgd."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0."""
    final_lr: float = 0.0
    """Share of the peak learning rate that is left at the end of the cosine; 1 keeps it constant."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("lr", "vector_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay must be 0 or more and finite, not {self.weight_decay}")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in 0..1, 1 left out, not {getattr(self, name)}")
        if not 0 <= self.final_lr <= 1:
            raise InputError(f"final_lr must be in 0..1, not {self.final_lr}")


def schedule(progress: float, warmup: float, final: float = 0.0) -> float:
    """Linear warm-up, then a cosine (SGDR, Loshchilov and Hutter 2017, equation 5 without restarts).

    Args:
        progress: the share of the steps that is done, in 0..1.
        warmup: the share in which the factor rises from 0 to 1.
        final: the factor at the end.

    Returns:
        The factor of the peak learning rate, in 0..1.
    """
    if progress < warmup:
        return progress / warmup
    cosine = (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    return final + (1 - final) * cosine


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1 by a quintic Newton-Schulz iteration (Jordan et al. 2024, Muon).

    Args:
        matrices: float (..., M, N).

    Returns:
        The same shape and dtype; singular values in about 0.7..1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest slope at 0 that still keeps the values in that band
    # bf16 is what tensor cores want; on a CPU without bf16 units it made a step of torch.optim.Muon take
    # 565 ms where float32 takes 20 ms (four matrices of the light CNN, two AVX2 cores).
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A convolution's weight (O, I, k, k) counts as a matrix (O, I k k). torch.optim.Muon refuses these and always
    computes in bf16; see `orthogonalise`.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                nesterov = p.grad.add(buffer, alpha=group["momentum"]).flatten(1)  # (O, I k k)
                scale = max(1.0, nesterov.size(0) / nesterov.size(1)) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(nesterov).view(p.shape), alpha=-group["lr"] * scale)


def muon(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    matrices, vectors = split(named)
    return [
        Muon([{"params": matrices, "base_lr": s.lr}], lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
        torch.optim.AdamW([{"params": vectors, "base_lr": s.vector_lr}], lr=s.vector_lr, weight_decay=0.0),
    ]


def adam(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(_groups(named, s), lr=s.lr)]


def adamw(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(_groups(named, s), lr=s.lr)]


def sgd(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(_groups(named, s), lr=s.lr, momentum=s.momentum, nesterov=s.momentum > 0)]


def split(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with two dimensions or more, and the rest (biases, norms)."""
    trainable = [p for _, p in named if p.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def _groups(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[dict[str, Any]]:
    matrices, vectors = split(named)
    return [
        {"params": matrices, "base_lr": s.lr, "weight_decay": s.weight_decay},
        {"params": vectors, "base_lr": s.lr, "weight_decay": 0.0},
    ]


OPTIMIZERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {
    "muon": muon,
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
