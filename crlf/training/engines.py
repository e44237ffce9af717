"""Engines: how the gradients of several processes become those of the whole batch.

Each process computes the gradients of its own images. `Replicas`, torch's DistributedDataParallel, sums them while the
backward pass still runs, bucket by bucket. It would divide the sum by the number of processes, as if each had a loss of
its own; here the losses are parts of one (crlf.runtime.sharing), so nothing is divided.

Replicas hold all weights. Where these, their gradients and the optimizer's moments do not fit, each process holds a
part of every tensor (crlf.training.sharded).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crlf.errors import first_line
from crlf.methods.base import Method
from crlf.runtime import distributed
from crlf.runtime.sharing import WHOLE, Share, share_of


class Whole(NamedTuple):
    """All that a checkpoint holds of the weights."""

    method: dict[str, Any]
    """The method's state dict."""
    optimizers: list[dict[str, Any]]
    """The state dict of each optimizer."""


class Engine:
    """One process, whose gradients are those of the batch."""

    share: Share = WHOLE

    def __init__(self, method: Method):
        self.method = method

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As `Method.project`; in the backward pass, its gradients are summed over the processes."""
        return self.method.project(views)

    def part(self, last: bool = True) -> AbstractContextManager[Any]:
        """The block in which a part of a batch is projected and differentiated. Before the last, gradients are kept and
        not sent."""
        return contextlib.nullcontext()

    def plain(self) -> Method:
        """The method with all weights. Every process must call this; only the first one may use what it returns."""
        return self.method

    def whole(self, optimizers: Sequence[torch.optim.Optimizer]) -> Whole:
        """The state of the method and of its optimizers. Every process must call this."""
        return Whole(self.method.state_dict(), [optimizer.state_dict() for optimizer in optimizers])


class Replicas(Engine):
    """Several processes, each with all weights: torch's DistributedDataParallel.

    Args:
        batch: the images of all processes in a step.
        parts: the number of parts in which each process projects its images.
    """

    def __init__(self, method: Method, batch: int, parts: int):
        super().__init__(method)
        self.share = share_of(batch)
        self.failed = False
        with warnings.catch_warnings():  # newer torch has another name for `broadcast_buffers`
            warnings.simplefilter("ignore", FutureWarning)
            self.replica = DistributedDataParallel(
                Projecting(method),
                broadcast_buffers=False,  # batch norms already share their moments
                gradient_as_bucket_view=True,
                static_graph=parts == 1,  # else some backward passes send gradients and some do not
            )
        # torch compares a hook's annotations with its classes, and here they are strings: a lambda has none
        self.replica.register_comm_hook(self, lambda engine, bucket: summed(engine, bucket))

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        projections: tuple[Tensor, ...] = self.replica(views)
        return projections

    @contextlib.contextmanager
    def part(self, last: bool = True) -> Iterator[None]:
        try:
            with contextlib.nullcontext() if last else self.replica.no_sync():
                yield
        except RuntimeError as error:
            if self.failed:
                raise distributed.Unanswered(first_line(error)) from error
            raise


class Projecting(nn.Module):
    """A method as torch's wrappers take it: the loss, which processes share, stays outside."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As `Method.project`."""
        return self.method.project(views)


def summed(engine: Replicas, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket of gradients over all processes: a communication hook of DistributedDataParallel."""

    def received(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        try:
            return done.value()[0]
        except RuntimeError:  # gloo's, and NCCL's DistBackendError
            engine.failed = True
            raise

    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(received)
