"""Parts of an optimizer's step: its momentum, a scaled update, and weights of which each process holds a part."""

from __future__ import annotations

import torch
from torch import Tensor


def momentum_buffer(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor:
    """The momentum of a parameter, zeros at first."""
    state = optimizer.state[p]
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(p)
    found: Tensor = state["momentum_buffer"]
    return found


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded (crlf.training.sharded); if it is, every process must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def as_part_of(p: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole tensor if the parameter `p` is sharded; otherwise the tensor itself."""
    if not hasattr(p, "device_mesh") or not hasattr(p, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)


def add_scaled(p: Tensor, direction: Tensor, lr: float | Tensor, factor: float) -> None:
    """p <- p + lr factor direction, where lr is a number or a tensor."""
    if isinstance(lr, Tensor):
        p.addcmul_(direction, lr, value=factor)
    else:
        p.add_(direction, alpha=lr * factor)
