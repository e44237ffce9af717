"""Batch norm by remembered statistics while it trains: a network's rows are then independent of each other.

So the gradients of a batch in parts are exactly those of the whole. What is remembered still follows the batches: the
moments that the inputs of each batch norm have are added up over the parts and the processes, and blended in at the end
of the step. No gradient flows through them, so weights may grow without anything to hold them (Ioffe 2017, Batch
Renormalization, section 3): it serves encoders whose statistics have settled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crlf.runtime import distributed
from crlf.runtime.batch_norm import BatchNormBy


class FrozenNorms(BatchNormBy):
    """Within this block batch norms in training use their running statistics; at its end these move.

    Args:
        passes: how often every image goes through the network meanwhile.
    """

    def __init__(self, network: nn.Module, passes: int = 1):
        super().__init__(self.normalise)
        self.passes = passes
        self.momenta = {id(m.running_mean): m.momentum for m in network.modules() if isinstance(m, _BatchNorm)}
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # mean, variance; sums of 1, x - mean, (x - mean)^2

    def normalise(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `torch.nn.functional.batch_norm`: float (B, C, ...)."""
        if not training or mean is None or var is None:
            return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        with torch.no_grad():
            apart = x.transpose(0, 1).flatten(1).to(mean.dtype) - mean[:, None]  # (C, B ...)
            sums = torch.stack([torch.full_like(mean, apart.shape[1]), apart.sum(1), apart.square().sum(1)])  # (3, C)
            before = self.seen[id(mean)][2] if id(mean) in self.seen else torch.zeros_like(sums)
            self.seen[id(mean)] = (mean, var, before + sums)
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for key, (mean, var, sums) in self.seen.items() if not any(error) else ():
            count, first, second = distributed.total(sums) / self.passes
            shift = first / count
            momentum = self.momenta[key] or 0.1
            var.lerp_((second / count - shift.square()) * count / (count - 1), momentum)
            mean.add_(shift, alpha=momentum)
