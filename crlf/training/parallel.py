"""Chooses the engine of a run: one process, or several that hold all weights or parts of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crlf.methods.base import Method
from crlf.runtime import distributed
from crlf.runtime.devices import memory_there
from crlf.training.engines import Engine, Replicas


def engine_of(
    method: Method, batch: int, parts: int = 1, shard: str = "none", optimizers: Sequence[torch.optim.Optimizer] = ()
) -> Engine:
    """The engine for as many processes as there are.

    Args:
        batch: the images of all processes in a step.
        parts: the number of parts in which each process projects its images.
        shard: one of crlf.runtime.distributed.SHARDS. auto shards where weights, gradients and moments would take more
            than half of the memory of a device.
        optimizers: of the method's parameters.
    """
    if distributed.world() == 1:
        return Engine(method)
    if shard == "full" or (shard == "auto" and large(method)):
        from crlf.training.sharded import Shards  # slow to import

        return Shards(method, batch, optimizers)
    return Replicas(method, batch, parts)


def large(method: Method) -> bool:
    """Whether weights, gradients and two moments take more than half of the memory of the method's device."""
    room = memory_there(next(method.parameters()).device)
    return 0 < room < 2 * 4 * sum(p.nbytes for p in method.parameters())
