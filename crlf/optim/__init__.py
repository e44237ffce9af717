"""Optimizers, and the learning rate as a pure function of progress.

An entry of `OPTIMIZERS` takes the named parameters of a method and the settings, and returns torch optimizers. Each of
their parameter groups has a `base_lr` and a `base_decay`, which the loop multiplies by `schedule(progress)` before
every step. Parameters that do not require a gradient are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from crlf.defaults import Unasked, unasked
from crlf.errors import InputError, unknown
from crlf.optim.lars_step import LARS, LARS_OF
from crlf.optim.muon_step import Muon, orthogonalise
from crlf.optim.updates import whole

__all__ = [
    "LARS", "LARS_OF", "LINEAR", "OPTIMIZERS", "Muon", "OptimSettings",
    "keep_rates_in_tensors", "orthogonalise", "rates", "schedule", "set_rates", "split", "whole",
]  # fmt: skip

LARGEST = 1024  # smaller side of a matrix that Muon takes; its cost grows with the cube
LONGEST = 16_384  # larger side: what has a row for each image of a large set (DIET) is no layer like others


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimizer and its learning rate."""

    optimizer: str = unasked("muon")
    """One of: muon, adam, adamw, sgd, lars."""
    lr: float = unasked(0.02)
    """Peak learning rate; with muon, of the matrices. The default is that of the optimizer."""
    lr_per: int = 256
    """With sgd and lars: the batch size that lr is for. A run uses lr × batch_size / lr_per; 0 uses lr unchanged."""
    vector_lr: float = 3e-3
    """With muon: the peak learning rate of biases and norms, which AdamW updates."""
    momentum: float = unasked(0.95)
    """Momentum of muon, sgd and lars. The default for sgd and lars is 0.9."""
    nesterov: bool = False
    """With sgd: use Nesterov's momentum. Muon always does."""
    weight_decay: float = unasked(0.1)
    """Weight decay, of matrices unless decay_all. The default for all but muon is 0. Decoupled for muon and adamw."""
    decay_all: bool = False
    """Decay biases and norms too, as a plain torch optimizer does."""
    final_weight_decay: float = 1.0
    """Factor of the weight decay at the end of training, along a cosine; 1 keeps it constant (DINO: 10, of 0.04)."""
    trust: float = 0.001
    """With lars: the length of a step at learning rate 1, as a share of the weights' length."""
    lars: str = "paper"
    """With lars: the code it follows; one of: paper, simclr, barlow, solo-learn."""
    loss_scale: float = 1.0
    """Multiplies the gradients, for published rates that belong to a multiple of the loss here. It changes SGD, and
    the biases and norms of LARS."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0."""
    final_lr: float = 0.0
    """Share of the peak learning rate at the end of the cosine; 1 keeps it constant."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.lars not in LARS_OF:
            raise unknown("lars", self.lars, LARS_OF)
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in OF_OPTIMIZER.get(self.optimizer, {}).items():
            held = getattr(self, name)
            if isinstance(held, Unasked) and held == defaults[name]:  # a domain or --init may have another
                object.__setattr__(self, name, unasked(value))
        for name in ("lr", "vector_lr", "trust", "loss_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("weight_decay", "final_weight_decay", "lr_per"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more and finite, not {getattr(self, name)}")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in 0..1, 1 left out, not {getattr(self, name)}")
        if not 0 <= self.final_lr <= 1:
            raise InputError(f"final_lr must be in 0..1, not {self.final_lr}")

    def for_batch(self, batch_size: int) -> OptimSettings:
        """These settings with the learning rate for this batch size.

        SGD and LARS follow the linear rule (Goyal et al. 2017, section 2.1), in which papers state their rates per 256
        images. The steps of the others do not depend on the length of the gradient, and no such rule applies to them.
        """
        scaled = self.optimizer in LINEAR and self.lr_per > 0
        lr = self.lr * batch_size / self.lr_per if scaled else float(self.lr)
        momentum, decay = float(self.momentum), float(self.weight_decay)  # plain numbers, which torch saves and loads
        return replace(self, lr=lr, lr_per=0, momentum=momentum, weight_decay=decay)


def schedule(progress: float, warmup: float, final: float = 0.0) -> float:
    """Linear warm-up, then a cosine (SGDR, Loshchilov and Hutter 2017, equation 5 without restarts).

    Args:
        progress: the share of the steps that is done, in 0..1.
        warmup: the share in which the factor rises from 0 to 1.
        final: the factor at the end.

    Returns:
        The factor of the peak learning rate, or of the weight decay: between 0, 1 and final.
    """
    if progress < warmup:
        return progress / warmup
    cosine = (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    return final + (1 - final) * cosine


def muon(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW at `vector_lr` for biases, norms and what is too large to orthogonalise every step."""
    matrices, vectors = _groups(named, s)
    large = [p for p in matrices["params"] if too_large(p)]
    matrices["params"] = [p for p in matrices["params"] if not too_large(p)]
    vectors["base_lr"] = s.vector_lr
    others = [{**matrices, "params": large, "base_lr": s.vector_lr}] if large else []
    return [
        Muon([matrices], lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
        torch.optim.AdamW([vectors, *others], lr=s.vector_lr),
    ]


def too_large(p: Tensor) -> bool:
    """Whether a matrix costs too much to orthogonalise every step."""
    shape = p.flatten(1).shape
    return min(shape) > LARGEST or max(shape) > LONGEST


def adam(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(_groups(named, s), lr=s.lr)]


def adamw(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(_groups(named, s), lr=s.lr)]


def sgd(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(_groups(named, s), lr=s.lr, momentum=s.momentum, nesterov=s.nesterov and s.momentum > 0)]


def lars(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[torch.optim.Optimizer]:
    matrices, vectors = _groups(named, s)
    return [LARS([{**matrices, "trust": s.trust}, vectors], lr=s.lr, momentum=s.momentum, kind=s.lars)]


def split(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that are matrices, and the rest: biases, norms, a ViT's class token and positions."""
    trainable = [p for _, p in named if p.requires_grad]
    return [p for p in trainable if _is_matrix(p)], [p for p in trainable if not _is_matrix(p)]


def _is_matrix(p: Tensor) -> bool:
    return p.ndim > 1 and min(p.flatten(1).shape) > 1


def _groups(named: list[tuple[str, nn.Parameter]], s: OptimSettings) -> list[dict[str, Any]]:
    matrices, vectors = split(named)
    of_vectors = s.weight_decay if s.decay_all else 0.0
    return [
        {"params": matrices, "base_lr": s.lr, "weight_decay": s.weight_decay, "base_decay": s.weight_decay},
        {"params": vectors, "base_lr": s.lr, "weight_decay": of_vectors, "base_decay": of_vectors},
    ]


OPTIMIZERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {
    "muon": muon,
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "lars": lars,
}
LINEAR = ("sgd", "lars")  # whose learning rate is proportional to the batch
OF_OPTIMIZER: dict[str, dict[str, float]] = {  # where nobody asked for a value
    "adam": {"lr": 3e-3, "weight_decay": 0.0},
    "adamw": {"lr": 3e-3, "weight_decay": 0.0},  # docs/recipe.md has what it gives
    "sgd": {"lr": 0.06, "momentum": 0.9, "weight_decay": 0.0},  # dkobak/simclr-cifar10, for 100 epochs
    "lars": {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0},  # SimCLR for CIFAR-10, appendix B.9
}


def set_rates(optimizers: list[torch.optim.Optimizer], lr: float, decay: float, late: float | None = None) -> None:
    """Set each group's learning rate and weight decay to these factors of its own `base_lr` and `base_decay`.

    Args:
        late: replaces `lr` for groups whose `late` is true, which begin to learn later.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            factor = late if late is not None and group.get("late") else lr
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["base_lr"] * factor)
            else:
                group["lr"] = group["base_lr"] * factor
            group["weight_decay"] = group["base_decay"] * decay


def rates(s: OptimSettings, progress: float, begin: float = 0.0) -> dict[str, float]:
    """The factors that `set_rates` takes, after a share of the steps.

    Args:
        begin: the share of the steps after which the late groups begin, with a warm-up of their own.
    """
    late = schedule((progress - begin) / (1 - begin), s.warmup, s.final_lr) if progress >= begin else 0.0
    return {
        "lr": schedule(progress, s.warmup, s.final_lr),
        "decay": schedule(progress, 0.0, s.final_weight_decay),
        "late": late,
    }


def keep_rates_in_tensors(optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
    """Keep learning rates and Adam's count of steps on the device, where a replayed CUDA graph reads them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if not isinstance(optimizer, Muon | LARS):
                group |= {"fused": True, "foreach": False, "capturable": True}
