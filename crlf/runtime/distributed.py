"""Which of several processes this is, and what they tell each other. `torchrun` starts them; alone, nothing here acts.

CPU tensors travel by gloo, those on NVIDIA's GPUs by NCCL.

They train one batch together: each has a share of it. Batch norms take their moments over all ranks' rows
(crlf.runtime.batch_norm), and `whole_batch` puts together the rows that a loss compares. What comes after is computed
by every rank alike, so that each holds the loss of the whole batch; `add_up` then makes of the gradients, to which each
rank gave those of its rows, the ones that a single process has.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from crlf.errors import InputError, first_line

T = TypeVar("T")
WAIT = datetime.timedelta(days=7)  # for the slowest rank; when one dies, torchrun ends the others
FAILED = 2  # the exit code of a rank that ends because the first one refused the input
ANSWER = datetime.timedelta(seconds=10)  # when a rank is lost, for the others to say that they are there


def rank() -> int:
    """This process among `world()`: 0, 1, …"""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within this block, or function, the processes that torchrun started can speak to each other."""
    if world() == 1 or torch.distributed.is_initialized():
        yield
        return
    nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=WAIT)
    try:
        yield
    except Unanswered:
        _end_without(_lost())
    finally:
        torch.distributed.destroy_process_group()


class Unanswered(RuntimeError):
    """Another rank is gone: what was to be said to all could not be."""


def speak(collective: Callable[..., Any], *arguments: Any) -> None:
    """A collective of torch.distributed."""
    try:
        collective(*arguments)
    except RuntimeError as error:  # gloo's, and NCCL's DistBackendError
        raise Unanswered(first_line(error)) from error


def _lost() -> list[int]:
    """The ranks that do not say within `ANSWER` that they are there; torchrun's own end of us waits until then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(*place, is_master=False, timeout=ANSWER, wait_for_workers=False)
        key = f"crlf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"  # torchrun's store outlives a restart
        store.set(f"{key}/{rank()}", "here")
        lost, deadline = list(range(world())), time.monotonic() + ANSWER.total_seconds()
        while lost and time.monotonic() < deadline:
            lost = [other for other in lost if not store.check([f"{key}/{other}"])]
            time.sleep(0.2)
    except RuntimeError:  # the store is gone, and with it who holds it where torchrun's agent does not
        lost = [0]
    return lost


def _end_without(lost: Sequence[int]) -> None:
    """End this process; the first one that is left says why."""
    who = "rank " + ", ".join(map(str, lost)) if lost else "a rank"
    first = min(set(range(world())) - set(lost), default=rank())
    advice = "--resume continues from the last checkpoint, on any number of processes"
    raise SystemExit(f"{who} of {world()} is gone, so all stop: {advice}" if rank() == first else 1)


def gather(value: T) -> list[T]:
    """What each rank calls this with, in the order of the ranks; all of them wait for the last."""
    if world() == 1:
        return [value]
    found: list[T] = [value] * world()
    speak(torch.distributed.all_gather_object, found, value)
    return found


def part_of(count: int) -> range:
    """This rank's share of so many things: the ranks' shares are contiguous, in order, and as equal as can be."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def parts_of(count: int, most: int = 0) -> list[range]:
    """This rank's share in as few parts of at most so many as can be, on all ranks alike many; 0 leaves it whole."""
    share = part_of(count)
    parts = -(-count // (most * world())) if most else 1
    cuts = [share.start + len(share) * i // parts for i in range(parts + 1)]
    return [range(*ends) for ends in pairwise(cuts)]


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs the one that is this rank's; any other device stays as it is."""
    if world() == 1 or device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


# What the first one does for all


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The block runs on rank 0, and then on the others: what the first one fetched, they find.

    Raises:
        SystemExit: on the others, when the block failed on rank 0, which says why.
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
    """What a function returned on rank 0, which alone calls it. Raises as `first_alone` does."""
    made: T | None = None
    with first_alone():
        made = act() if rank() == 0 else None
    told = gather(made)[0]
    return made if rank() == 0 else told  # type: ignore[return-value]


def _end_unless(fine: bool) -> None:
    if not fine:
        raise SystemExit(FAILED)


def highest(*values: float) -> list[float]:
    """The highest of all ranks, of each value: so they agree on what time or a signal tells them differently."""
    if world() == 1:
        return list(values)
    told = torch.tensor(values, dtype=torch.float64)  # on the CPU: no device waits
    speak(torch.distributed.all_reduce, told, torch.distributed.ReduceOp.MAX)
    return told.tolist()


def total(value: Tensor) -> Tensor:
    """The sum of all ranks' values, in the same tensor."""
    if world() > 1:
        speak(torch.distributed.all_reduce, value)
    return value


def all_gather(value: Tensor) -> list[Tensor]:
    """What each rank calls this with, of one shape and dtype, in the order of the ranks."""
    found = [torch.empty_like(value) for _ in range(world())]
    speak(torch.distributed.all_gather, found, value)
    return found


def require_share(batch_size: int, device: torch.device) -> None:
    """Raise InputError when a batch has no image for some rank, or the device cannot train with so many."""
    if batch_size < world():
        raise InputError(f"batch_size must be at least the {world()} processes, not {batch_size}")
    if world() > 1 and device.type == "mps":
        raise InputError(f"device 'mps' trains with one process, not {world()}: gloo and NCCL do not know it")
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device.type == "cuda" and here > there:
        raise InputError(f"nproc-per-node must be at most the {there} GPUs of this machine, not {here}")


# One batch on all ranks


def whole_batch(rows: Tensor, dim: int = 1) -> Tensor:
    """The rows of all ranks, in order.

    The gradient of what each rank computes from them, all the same, reaches the rows that are its own.

    Args:
        rows: any dtype, (..., B of this rank, ...).
        dim: which of them B is.
    """
    if world() == 1:
        return rows
    return _WholeBatch.apply(rows, dim)


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dim: int) -> Tensor:
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(world())]
        speak(torch.distributed.all_gather, counts, torch.tensor([rows.shape[dim]]))
        sizes = [int(count) for count in counts]
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[: rank()]), rows.shape[dim]
        mine = rows.movedim(dim, 0)
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])  # all ranks send as much
        padded[: len(mine)] = mine
        parts = [part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)]
        return torch.cat(parts).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.narrow(ctx.dim, ctx.start, ctx.size), None


def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make each gradient the sum of all ranks': one message for each dtype."""
    if world() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        these = [grad for grad in grads if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in these])
        speak(torch.distributed.all_reduce, flat)
        for grad, part in zip(these, flat.split([grad.numel() for grad in these]), strict=True):
            grad.copy_(part.view_as(grad))
