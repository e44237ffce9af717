"""A process's share of a batch: its own images, and access to the rows of the other processes.

Each process computes a loss for its own images, and gets the rows of the others from its `Share`. Gradients flow
through it: each process has the whole gradient of its own rows, as if one process had computed the loss of the whole
batch. With one process, `WHOLE` returns everything unchanged.

Shapes: B images in the batch of all processes, b images of this process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crlf.runtime import distributed


class Share:
    """All images of a batch: the share of a single process."""

    @property
    def whole(self) -> bool:
        """Whether this is the whole batch."""
        return True

    def count(self, own: int) -> int:
        """The number of rows in the whole batch, if this process has `own` rows: b, or a multiple of b."""
        return own

    def numbers(self, own: int, device: torch.device) -> Tensor:
        """The positions in the batch of this process's images: int64 (b,)."""
        return torch.arange(own, device=device)

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        """The rows of all images, in order: (..., b, ...) -> (..., B, ...).

        Args:
            dim: the dimension of b.
        """
        return rows

    def gather_views(self, rows: Tensor, views: int) -> Tensor:
        """The rows of all images, view after view: (V b, ...) -> (V B, ...)."""
        return rows

    def own_columns(self, values: Tensor) -> Tensor:
        """The values of this process's images among those of all: (..., B) -> (..., b)."""
        return values

    def stack(self, value: Tensor) -> Tensor:
        """The value of each process, without gradient: (...) -> (processes, ...)."""
        return value.detach()[None]

    def total(self, value: Tensor) -> Tensor:
        """The sum of the values of all processes."""
        return value

    def weighted(self, value: Tensor) -> Tensor:
        """A value multiplied by b / B."""
        return value

    def average(self, value: Tensor) -> Tensor:
        """The mean over the whole batch, from the mean over the images of each process."""
        return value


WHOLE = Share()


class SharedBatch(Share):
    """The share of one of several processes, as `distributed.part_of` divides a batch.

    Args:
        batch: B.
    """

    def __init__(self, batch: int):
        self.batch, self.own = batch, distributed.part_of(batch)

    @property
    def whole(self) -> bool:
        return False

    def count(self, own: int) -> int:
        return own // len(self.own) * self.batch

    def numbers(self, own: int, device: torch.device) -> Tensor:
        return torch.arange(self.own.start, self.own.stop, device=device)

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        gathered: Tensor = _Gathered.apply(rows, dim, [len(part) for part in distributed.all_parts_of(self.batch)])
        return gathered

    def gather_views(self, rows: Tensor, views: int) -> Tensor:
        return self.gather(rows.unflatten(0, (views, -1)), dim=1).flatten(0, 1)

    def own_columns(self, values: Tensor) -> Tensor:
        return values[..., self.own.start : self.own.stop]

    def stack(self, value: Tensor) -> Tensor:
        return torch.stack(distributed.all_gather(value.detach().contiguous()))

    def total(self, value: Tensor) -> Tensor:
        summed: Tensor = _Summed.apply(value)
        return summed

    def weighted(self, value: Tensor) -> Tensor:
        return value * (len(self.own) / self.batch)

    def average(self, value: Tensor) -> Tensor:
        return self.total(self.weighted(value))


class _Gathered(torch.autograd.Function):
    """Gathers the rows of all processes; the gradients of a row from all processes are summed in its own process."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, dim: int, sizes: list[int]) -> Tensor:
        ctx.dim, ctx.sizes = dim, sizes
        mine = rows.movedim(dim, 0)
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])  # all processes must send the same size
        padded[: len(mine)] = mine
        parts = [part[:size] for part, size in zip(distributed.all_gather(padded), sizes, strict=True)]
        return torch.cat(parts).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts = grad.movedim(ctx.dim, 0).split(ctx.sizes)
        padded = [grad.new_zeros(max(ctx.sizes), *parts[0].shape[1:]) for _ in parts]
        for place, part in zip(padded, parts, strict=True):
            place[: len(part)] = part
        own = distributed.sum_apart(padded)[: ctx.sizes[distributed.rank()]]
        return own.movedim(0, ctx.dim), None, None


class _Summed(torch.autograd.Function):
    """Sums a value over the processes. Each loss may depend on the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return distributed.total(value.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return distributed.total(grad.clone(memory_format=torch.contiguous_format))


def share_of(batch: int) -> Share:
    """This process's share of a batch of `batch` images."""
    return WHOLE if distributed.world() == 1 else SharedBatch(batch)
