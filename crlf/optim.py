"""Optimizers, and the learning rate as a pure function of progress.

An entry of `OPTIMIZERS` takes the named parameters of a method and the settings, and gives torch optimizers whose
parameter groups each hold a `base_lr` and a `base_decay`; the loop multiplies them by `schedule(progress)` before every
step. What does not require a gradient is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from crlf.defaults import Unasked, unasked
from crlf.errors import InputError, unknown

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest slope at 0 that still ends in 0.7..1.2 (Jordan et al. 2024)
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
        """These settings with the learning rate for this batch: the one place where the two meet.

        SGD and LARS follow the linear rule (Goyal et al. 2017, section 2.1), in which papers state their rates per 256
        images. The others take a step whose length does not depend on the gradient's, and there is no such rule.
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


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 by a quintic Newton-Schulz iteration (Jordan et al. 2024, Muon).

    Args:
        matrices: float (..., M, N).

    Returns:
        The same shape and dtype; singular values in about 0.7..1.2, if they were above 0.003 of the matrix's norm.
    """
    # bf16 is what tensor cores want; on a CPU without bf16 units it made a step of torch.optim.Muon take
    # 565 ms where float32 takes 20 ms (four matrices of the light CNN, two AVX2 cores).
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = plain_iteration(x) if matrices.is_cuda else through_gram(x)
    return (x.mT if tall else x).to(matrices.dtype)


def plain_iteration(x: Tensor) -> Tensor:
    """Five times X <- P X with P = a + b G + c G^2 and G = X X^T: float (..., M, N), of norm 1."""
    a, b, c = NEWTON_SCHULZ
    batch = x if x.ndim == 3 else x[None]
    for _ in range(5):
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    return batch.view(x.shape)


def through_gram(x: Tensor) -> Tensor:
    """The same with G alone carried from step to step, G <- P G P, and all P applied at once.

    Everything but X is then symmetric, (M, M) and a polynomial of the first G, so the order of products is free. For
    a 3x3 convolution (N = 4.5 M or 9 M) that takes half of the products. In float32 it is within 2e-3 of the other,
    with singular values down to 1e-6 of the largest; in bf16 it would not be.
    """
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT  # (..., M, M)
    eye = torch.eye(gram.size(-1), dtype=x.dtype, device=x.device)
    product = a * eye + b * gram + c * gram @ gram
    factor = product
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = a * eye + b * gram + c * gram @ gram
        product = factor @ product
    return product @ x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A convolution's weight (O, I, k, k) counts as a matrix (O, I k k). torch.optim.Muon refuses these and always
    computes in bf16; see `orthogonalise`. A group's `lr` may be a tensor.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for alike in alike_in_shape(moving):
                directions = [whole(self._nesterov(p, group["momentum"])).flatten(1) for p in alike]  # (O, I k k)
                for p, direction in zip(alike, orthogonalise_all(directions), strict=True):
                    scale = max(1.0, direction.size(0) / direction.size(1)) ** 0.5
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    add_scaled(p, as_part_of(p, direction.view(p.shape)), group["lr"], -scale)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        buffer = momentum_buffer(self, p)
        buffer.mul_(momentum).add_(p.grad)
        return p.grad.add(buffer, alpha=momentum)


def momentum_buffer(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor:
    """The momentum of a parameter, zeros at first."""
    state = optimizer.state[p]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(p)
    found: Tensor = state["momentum_buffer"]
    return found


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part (crlf.training.engines.Shards); then all must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def as_part_of(p: Tensor, value: Tensor) -> Tensor:
    """This process's part of a tensor that all have, where `p` is one of which each holds a part."""
    if not hasattr(p, "device_mesh") or not hasattr(p, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)


def alike_in_shape(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those that are orthogonalised together: on a GPU, where launches count, all of a shape; elsewhere each alone."""
    groups: dict[Any, list[Tensor]] = {}
    for i, p in enumerate(parameters):
        groups.setdefault(p.flatten(1).shape if p.is_cuda else i, []).append(p)
    return list(groups.values())


def orthogonalise_all(matrices: Sequence[Tensor]) -> Sequence[Tensor]:
    """`orthogonalise` of matrices of one shape, as one batch where there are several."""
    if len(matrices) == 1:
        return [orthogonalise(matrices[0])]
    return orthogonalise(torch.stack(list(matrices))).unbind()


def add_scaled(p: Tensor, direction: Tensor, lr: float | Tensor, factor: float) -> None:
    """p <- p + lr factor direction, where lr is a number or a tensor."""
    if isinstance(lr, Tensor):
        p.addcmul_(direction, lr, value=factor)
    else:
        p.add_(direction, alpha=lr * factor)


@dataclass(frozen=True)
class LarsKind:
    """In what the published codes of LARS differ."""

    rate_inside: bool
    """Whether the learning rate scales what enters the momentum, or the momentum; the same while it is constant."""
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
        """What a weight's direction is multiplied by: a scalar; 1 where the weight or what divides it is 0."""
        w, g = weight.norm(), gradient.norm()
        length = direction.norm() if self.kind.of_sum else g + group["weight_decay"] * w
        found = torch.where((w > 0) & (g > 0), group["trust"] * w / length, 1.0)
        if self.kind.clipped:
            found = torch.where((w > 0) & (g > 0), (found / group["lr"]).clamp(max=1.0), 1.0)
        return found


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
        late: in the place of `lr` for groups that begin later, whose `late` is true.
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
        begin: the share after which what begins later does, with a warm-up of its own.
    """
    late = schedule((progress - begin) / (1 - begin), s.warmup, s.final_lr) if progress >= begin else 0.0
    return {
        "lr": schedule(progress, s.warmup, s.final_lr),
        "decay": schedule(progress, 0.0, s.final_weight_decay),
        "late": late,
    }


def keep_rates_in_tensors(optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
    """Hold learning rates, and Adam's count of its steps, on the device: a step that is replayed reads them there."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if not isinstance(optimizer, Muon | LARS):
                group |= {"fused": True, "foreach": False, "capturable": True}
