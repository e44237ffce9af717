"""One batch on all ranks: each has a share of it, and all together compute what one process would.

Within `joined()` batch norms take their moments over all ranks' rows; `whole_batch` puts together the rows that a loss
compares. What comes after is computed by every rank alike, so that each holds the loss of the whole batch; `add_up`
then makes of the gradients, to which each rank gave those of its rows, the ones that a single process has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from crlf.runtime import distributed


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within this block a forward pass is one over the rows of all ranks: see the top of this file."""
    if distributed.world() == 1:
        yield
        return
    with BatchNormBy(batch_norm):
        yield


class BatchNormBy(TorchFunctionMode):
    """Within this block another function takes the place of `torch.nn.functional.batch_norm`.

    Any module's batch norm, those of timm as well, comes down to that one.
    """

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (self.function if func is F.batch_norm else func)(*args, **(kwargs or {}))


def whole_batch(rows: Tensor, dim: int = 1) -> Tensor:
    """The rows of all ranks, in order.

    The gradient of what each rank computes from them, all the same, reaches the rows that are its own.

    Args:
        rows: any dtype, (..., B of this rank, ...).
        dim: which of them B is.
    """
    if distributed.world() == 1:
        return rows
    return _WholeBatch.apply(rows, dim)


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dim: int) -> Tensor:
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(distributed.world())]
        distributed.speak(torch.distributed.all_gather, counts, torch.tensor([rows.shape[dim]]))
        sizes = [int(count) for count in counts]
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[: distributed.rank()]), rows.shape[dim]
        mine = rows.movedim(dim, 0)
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])  # all ranks send as much
        padded[: len(mine)] = mine
        parts = [part[:size] for part, size in zip(distributed.all_gather(padded), sizes, strict=True)]
        return torch.cat(parts).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.narrow(ctx.dim, ctx.start, ctx.size), None


def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make each gradient the sum of all ranks': one message for each dtype."""
    if distributed.world() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        these = [grad for grad in grads if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in these])
        distributed.speak(torch.distributed.all_reduce, flat)
        for grad, part in zip(these, flat.split([grad.numel() for grad in these]), strict=True):
            grad.copy_(part.view_as(grad))


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

    torch.nn.SyncBatchNorm is for GPUs alone, and for modules of torch's own classes.

    Args:
        x: float (B, C, ...); B may differ between ranks.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    y, mean, var, count = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    return y


class _BatchNorm(torch.autograd.Function):
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
    """Half precision in float32: moments of it have three digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
