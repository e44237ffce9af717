"""Which of several processes this is. `torchrun` starts them; alone, everything here does nothing.

The processes talk over gloo, on the CPU: what they tell each other here is small.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed

T = TypeVar("T")
WAIT = datetime.timedelta(days=7)  # for the slowest rank; when one dies, torchrun ends the others


def rank() -> int:
    """This process among `world()`: 0, 1, …"""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within this block the processes that torchrun started can `gather`."""
    if world() == 1 or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo", timeout=WAIT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def gather(value: T) -> list[T]:
    """What each rank calls this with, in the order of the ranks; all of them wait for the last."""
    if world() == 1:
        return [value]
    found: list[T] = [value] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def part_of(count: int) -> range:
    """This rank's share of so many things: the ranks' shares are contiguous, in order, and as equal as can be."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs the one that is this rank's; any other device stays as it is."""
    if world() == 1 or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
