"""Batch norm for a batch that is split: across ranks, or into parts computed one after another.

Within `joined()`, batch norms use the moments of all ranks' rows. Within `FrozenNorms`, they use running statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from crlf.runtime import distributed


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Let batch norms use the moments of all ranks' rows within this block."""
    if distributed.world() == 1:
        yield
        return
    with BatchNormBy(batch_norm):
        yield


class BatchNormBy(TorchFunctionMode):
    """Replace `torch.nn.functional.batch_norm`, which all batch norms call, including timm's, within this block."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (self.function if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with the moments of all ranks' rows in training.

    torch.nn.SyncBatchNorm works only on GPUs and for torch's own classes.

    Args:
        x: float (B, C, ...); B may differ between ranks.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    y, mean, var, count = _Normed.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    return y


class _Normed(torch.autograd.Function):
    """Ioffe and Szegedy 2015, algorithm 1 and the gradients of section 3, their sums over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        var, mean = torch.var_mean(_wide(x), _all_but_channels(x), correction=0)  # of this rank, (C,)
        count = mean.new_full((1,), x.numel() // x.shape[1])
        C = len(mean)
        ranks = torch.stack(distributed.all_gather(torch.cat([mean, var, count])))  # (ranks, 2C + 1)
        means, variances, counts = ranks[:, :C], ranks[:, C:-1], ranks[:, -1:]
        count = counts.sum()
        mean = (counts / count * means).sum(dim=0)
        var = (counts / count * (variances + (means - mean).square())).sum(dim=0)  # Chan et al. 1979: no cancellation
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *none: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, along = _all_but_channels(x), (1, -1, *[1] * (x.ndim - 2))
        dy = _wide(grad)
        x_hat = (_wide(x) - mean.view(along)) * scale.view(along)
        own = torch.stack([dy.sum(dims), (dy * x_hat).sum(dims)])  # (2, C): the gradients of bias and weight
        sums = own / count
        distributed.speak(torch.distributed.all_reduce, sums)
        dx = (dy - sums[0].view(along) - x_hat * sums[1].view(along)) * scale.view(along)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        return (dx * weight.view(along)).to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(x: Tensor) -> Tensor:
    """Convert half precision to float32, since its moments would have only three digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FrozenNorms(BatchNormBy):
    """Let batch norms in training use their running statistics within this block, and update these at its end.

    Rows are then independent of each other, so the gradients of a batch in parts equal those of the whole. The moments
    of each batch norm's inputs are summed over parts and processes and blended into the running statistics at the end
    of the step. No gradient flows through the moments, so weights may grow without bound (Ioffe 2017, Batch
    Renormalization, section 3): use it for encoders whose statistics have settled.

    Args:
        network: the network with the batch norms.
        passes: how often every image passes through the network within the block.
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
            given = self.momenta[key]
            momentum = 0.1 if given is None else given  # None averages over all steps
            var.lerp_((second / count - shift.square()) * count / (count - 1), momentum)
            mean.add_(shift, alpha=momentum)
