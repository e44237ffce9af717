"""Communication between the processes started by `torchrun`. With a single process, these functions do nothing.

CPU tensors are sent by gloo, tensors on NVIDIA GPUs by NCCL.

The processes train on one batch together, each on its part. Batch norms use the moments of all ranks' rows
(crlf.runtime.batch_norm), and each rank computes the loss of its own images (crlf.runtime.sharing). Each rank has the
gradients of its own rows, which are summed to those of a single process (crlf.training.engines).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from crlf.errors import InputError, first_line
from crlf.runtime import heartbeat, meeting

T = TypeVar("T")
WAIT = datetime.timedelta(days=7)  # for the slowest rank; if one dies, torchrun ends the others
FAILED = 2  # the exit code of a rank that ends because rank 0 refused the input
SHARDS = ("auto", "none", "full")  # whether each process holds all weights or a part of them
ANSWER = datetime.timedelta(seconds=10)  # for the other ranks to respond after one is lost
WORD = datetime.timedelta(seconds=2)  # for the store to take or give a last message
RESUME = "--resume continues from the last checkpoint, on any number of processes"


def rank() -> int:
    """The number of this process among `world()`: 0, 1, …"""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world() -> int:
    """The number of processes on this host; torchrun sets it, and otherwise all are taken to be here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


@contextlib.contextmanager
def together(advice: str = RESUME) -> Iterator[None]:
    """Let the processes of torchrun communicate within this block or function.

    Args:
        advice: what to do if a process is gone.

    Raises:
        InputError: on rank 0, if the block raised it there or on another rank: the message then names that rank.
        SystemExit: if another rank is gone.
    """
    if world() == 1 or torch.distributed.is_initialized():
        yield
        return
    nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    name = meeting.meet(rank(), world(), "cpu:gloo,cuda:nccl" if nccl else "gloo", WAIT)
    try:
        with heartbeat.watched(rank(), world(), name, functools.partial(_farewell, advice)):
            yield
    except InputError as error:
        _leave_word(str(error))
        raise
    except KeyboardInterrupt:  # torchrun ends the others if one rank ends with an error
        if told := _words():
            raise InputError(told) from None
        raise
    except Unanswered:
        lost = _lost()
        if told := _words():
            raise InputError(told) from None
        raise SystemExit(_farewell(advice, lost)) from None
    finally:
        torch.distributed.destroy_process_group()


def _attempt() -> str:
    """The part of torchrun's store that is for this start of the processes: the store outlives a restart."""
    return f"crlf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


class Unanswered(RuntimeError):
    """A collective failed because another rank is gone."""


def speak(collective: Callable[..., Any], *arguments: Any) -> None:
    """Call a collective of torch.distributed.

    Raises:
        Unanswered: another rank is gone.
    """
    try:
        collective(*arguments)
    except RuntimeError as error:  # gloo's, and NCCL's DistBackendError
        raise Unanswered(first_line(error)) from error


def _client(timeout: datetime.timedelta) -> torch.distributed.TCPStore:
    return meeting.client(meeting.place_of_store(), timeout)


def _leave_word(message: str) -> None:
    """Leave the message of a rank that ends for rank 0, which prints it: the other ranks print nothing."""
    if rank() > 0:
        with contextlib.suppress(RuntimeError):  # rank 0 is gone, and had the store
            _client(WORD).set(f"{_attempt()}/word/{rank()}", f"rank {rank()} on {socket.gethostname()}: {message}")


def _words() -> str:
    """On rank 0, the message of the first rank that left one; else ""."""
    if rank() == 0:
        with contextlib.suppress(RuntimeError):
            store = _client(WORD)
            for other in range(1, world()):
                if store.check([key := f"{_attempt()}/word/{other}"]):
                    return store.get(key).decode()
    return ""


def _lost() -> list[int]:
    """The ranks that do not respond within `ANSWER`. SIGTERM from torchrun is ignored until then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store = _client(ANSWER)
        key = f"{_attempt()}/lost"
        store.set(f"{key}/{rank()}", "here")
        lost, deadline = list(range(world())), time.monotonic() + ANSWER.total_seconds()
        while lost and time.monotonic() < deadline:
            lost = [other for other in lost if not store.check([f"{key}/{other}"])]
            time.sleep(0.2)
    except RuntimeError:  # the store is gone, and rank 0 with it unless torchrun's agent holds it
        lost = [0]
    return lost


def _farewell(advice: str, lost: Sequence[int]) -> int:
    """The exit code of this process when other ranks are gone; the first remaining one prints the reason."""
    who = "rank " + ", ".join(map(str, lost)) if lost else "a rank"
    first = min(set(range(world())) - set(lost), default=rank())
    if rank() == first:
        print(f"{who} of {world()} is gone, so all stop: {advice}", file=sys.stderr)
    return 1


def gather(value: T) -> list[T]:
    """The values of all ranks, in order. Every rank waits for the last one."""
    if world() == 1:
        return [value]
    found: list[T] = [value] * world()
    speak(torch.distributed.all_gather_object, found, value)
    return found


def part_of(count: int) -> range:
    """This rank's part of `count` items: contiguous, in rank order, and of nearly equal size."""
    return all_parts_of(count)[rank()]


def all_parts_of(count: int) -> list[range]:
    """The parts of all ranks, see `part_of`."""
    return [range(count * i // world(), count * (i + 1) // world()) for i in range(world())]


def parts_of(count: int, most: int = 0) -> list[range]:
    """This rank's part of `count` items, cut into the fewest parts of at most `most` items; 0 for one part.

    All ranks have the same number of parts.
    """
    share = part_of(count)
    parts = -(-count // (most * world())) if most else 1
    cuts = [share.start + len(share) * i // parts for i in range(parts + 1)]
    return [range(*ends) for ends in pairwise(cuts)]


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank if there are several; any other device is returned unchanged."""
    if world() == 1 or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank())) % torch.cuda.device_count())


# Work of rank 0 for all


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Run the block on rank 0 first, then on the others, which find what rank 0 downloaded or cached.

    Raises:
        InputError: on rank 0, also if another rank raised it: the message then names the rank and its host.
        SystemExit: on the other ranks, if the block failed on any.
    """
    if rank() > 0:
        _end_unless(gather(True)[0])
        try:
            yield
        except InputError as error:
            gather(f"rank {rank()} on {socket.gethostname()}: {error}")
            raise SystemExit(FAILED) from None
        _end_unless(not any(gather("")))
        return
    try:
        yield
    except BaseException:
        gather(False)
        raise
    gather(True)
    for refused in filter(None, gather("")):
        raise InputError(refused)


def by_first(act: Callable[[], T]) -> T:
    """Call a function on rank 0 only, and return its result on all ranks. Raises as `first_alone` does."""
    made: T | None = None
    with first_alone():
        made = act() if rank() == 0 else None
    told = gather(made)[0]
    return made if rank() == 0 else told  # type: ignore[return-value]


def _end_unless(fine: bool) -> None:
    if not fine:
        raise SystemExit(FAILED)


def highest(*values: float) -> list[float]:
    """The maximum of each value over all ranks, so that they agree on times and signals."""
    if world() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64)  # on the CPU: no device waits
    speak(torch.distributed.all_reduce, told, torch.distributed.ReduceOp.MAX)
    return told.tolist()


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if world() > 1:
        speak(torch.distributed.all_reduce, value)
    return value


def all_gather(value: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in order; all must have the same shape and dtype."""
    found = [torch.empty_like(value) for _ in range(world())]
    speak(torch.distributed.all_gather, found, value)
    return found


def sum_apart(values: list[Tensor]) -> Tensor:
    """The sum over all ranks of the tensor that each holds for this rank; `values` has one for each rank, of one
    shape and dtype."""
    found = torch.empty_like(values[rank()])
    speak(torch.distributed.reduce_scatter, found, values)
    return found


def require_share(batch_size: int, device: torch.device) -> None:
    """Raise InputError if a batch has fewer images than ranks, or the device does not support several processes."""
    if batch_size < world():
        raise InputError(f"batch_size must be at least the {world()} processes, not {batch_size}")
    if world() > 1 and device.type == "mps":
        raise InputError(f"device 'mps' trains with one process, not {world()}: gloo and NCCL do not support it")
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device.type == "cuda" and here > there:
        raise InputError(f"nproc-per-node must be at most the {there} GPUs of this machine, not {here}")
