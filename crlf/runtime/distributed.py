"""Communication between the processes started by `torchrun`. With a single process, these functions do nothing.

CPU tensors are sent by gloo, tensors on NVIDIA GPUs by NCCL.

The processes train on one batch together, each on its part. Batch norms use the moments of all ranks' rows
(crlf.runtime.batch_norm), and each rank computes the loss of its own images (crlf.runtime.sharing). Each rank has the
gradients of its own rows, which are summed to those of a single process (crlf.training.engines).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed
from torch import Tensor

from crlf.errors import InputError, first_line

T = TypeVar("T")
WAIT = datetime.timedelta(days=7)  # for the slowest rank; if one dies, torchrun ends the others
FAILED = 2  # the exit code of a rank that ends because rank 0 refused the input
SHARDS = ("auto", "none", "full")  # where the weights of several processes lie
ARRIVAL = datetime.timedelta(minutes=10)  # for the last rank to start
POLL = 0.1  # seconds
ANSWER = datetime.timedelta(seconds=10)  # for the other ranks to respond after one is lost


def rank() -> int:
    """The number of this process among `world()`: 0, 1, …"""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let the processes of torchrun communicate within this block or function."""
    if world() == 1 or torch.distributed.is_initialized():
        yield
        return
    nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    torch.distributed.init_process_group(backend, store=all_there(), rank=rank(), world_size=world(), timeout=WAIT)
    try:
        yield
    except Unanswered:
        _end_without(_lost())
    finally:
        torch.distributed.destroy_process_group()


def _attempt() -> str:
    """The part of torchrun's store that is for this start of the processes: the store outlives a restart."""
    return f"crlf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def all_there() -> torch.distributed.Store:
    """The store by which the ranks find each other, when all of them have started.

    Raises:
        InputError: a rank did not start within `ARRIVAL`, or has another version of torch. It is raised by the first
            rank that is there; the others raise SystemExit.
    """
    place, seconds = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), ARRIVAL.total_seconds()
    first = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        tcp = torch.distributed.TCPStore(*place, is_master=first, timeout=ARRIVAL, wait_for_workers=False)
    except RuntimeError as error:
        where = f"at {place[0]}:{place[1]} within {seconds:.0f} s"
        raise InputError(f"rank 0 of {world()} must answer {where}: {first_line(error)}") from error
    store = torch.distributed.PrefixStore(f"{_attempt()}/start", tcp)
    keys, deadline = [str(other) for other in range(world())], time.monotonic() + seconds
    store.set(keys[rank()], f"{torch.__version__} on {socket.gethostname()}")
    missing = list(keys)
    while missing := [key for key in missing if not store.check([key])]:
        if store.check(["refused"]):
            raise SystemExit(FAILED)
        if time.monotonic() > deadline:
            store.set("refused", "")
            who, here = ", ".join(missing), int(min(set(keys) - set(missing), key=int))
            _refuse(here, f"rank {who} of {world()} must start within {seconds:.0f} s, and did not: is its host there?")
        time.sleep(POLL)
    versions = [store.get(key).decode() for key in keys]
    for other, text in enumerate(versions):
        if text.split()[0] != versions[0].split()[0]:
            _refuse(0, f"torch must be the same everywhere, not {versions[0]} (rank 0) and {text} (rank {other})")
    return store


def require_same(value: object, what: str) -> None:
    """Raise InputError on rank 0, and SystemExit on the others, unless all ranks have the same value.

    Args:
        what: its name and the rule, the beginning of the message.
    """
    if world() == 1:
        return
    found = gather((value, socket.gethostname()))
    for other, (theirs, host) in enumerate(found):
        if theirs != found[0][0]:
            _refuse(0, f"{what}: those of rank {other} on {host} differ from those of rank 0 on {found[0][1]}")


def _refuse(by: int, message: str) -> NoReturn:
    """End all ranks, of which one gives the reason."""
    if rank() == by:
        time.sleep(10 * POLL)  # it may hold the store that the others still read
        raise InputError(message)
    raise SystemExit(FAILED)


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


def _lost() -> list[int]:
    """The ranks that do not respond within `ANSWER`. SIGTERM from torchrun is ignored until then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(*place, is_master=False, timeout=ANSWER, wait_for_workers=False)
        key = f"{_attempt()}/lost"
        store.set(f"{key}/{rank()}", "here")
        lost, deadline = list(range(world())), time.monotonic() + ANSWER.total_seconds()
        while lost and time.monotonic() < deadline:
            lost = [other for other in lost if not store.check([f"{key}/{other}"])]
            time.sleep(0.2)
    except RuntimeError:  # the store is gone, and rank 0 with it unless torchrun's agent holds it
        lost = [0]
    return lost


def _end_without(lost: Sequence[int]) -> None:
    """End this process; the first remaining one prints the reason."""
    who = "rank " + ", ".join(map(str, lost)) if lost else "a rank"
    first = min(set(range(world())) - set(lost), default=rank())
    advice = "--resume continues from the last checkpoint, on any number of processes"
    raise SystemExit(f"{who} of {world()} is gone, so all stop: {advice}" if rank() == first else 1)


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
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


# Work of rank 0 for all


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Run the block on rank 0 first, then on the others, which find what rank 0 downloaded or cached.

    Raises:
        SystemExit: on the other ranks, if the block failed on rank 0, which prints the reason.
    """
    if rank() > 0:
        _end_unless(gather(True)[0])
        yield
        return
    try:
        yield
    except BaseException:
        gather(False)
        raise
    gather(True)


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
