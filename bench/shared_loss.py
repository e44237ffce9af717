"""What one of several processes spends on its share of a loss: CPU seconds and memory, beside those of the whole loss.

The share of the first of 1, 2 and 4 processes is computed alone, on one thread: the loss of its images and the
gradients of its projections. The rows of the other processes are copies of its own; sending takes no time here. There
are two views of each image, and each method has its default widths. Seconds are the least of several rounds, in which
the shares take turns. Memory is the growth of the process's peak (Linux's VmHWM) while a share is computed; the share's
projections are there already. `times_n` and `memory_times_n` are n times the cost of the share, divided by
the whole cost: 1 for an ideal share.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crlf.encoders import CNN
from crlf.methods import METHODS
from crlf.methods.base import Method, TaughtMethod, compare
from crlf.runtime.sharing import SharedBatch

RANKS = (1, 2, 4)
SIZES: dict[str, tuple[int, ...]] = {"simclr": (4096, 8192, 16_384), "dcl": (8192,), "supcon": (4096,)}
OTHERS = dict.fromkeys(("mocov2", "mocov3", "nnclr", "barlow", "vicreg", "swav", "dino", "distill"), (8192,))
ROUNDS = 2
TAUGHT = 512  # the width of a teacher's features
STATUS = Path("/proc/self/status")


class Rehearsed(SharedBatch):
    """The share of the first of several processes that all have the same rows. Nothing is sent.

    Args:
        batch: the images of all processes.
        ranks: the number of processes, which divides `batch`.
    """

    def __init__(self, batch: int, ranks: int):
        self.batch, self.own, self.ranks = batch, range(batch // ranks), ranks

    @property
    def whole(self) -> bool:
        return self.ranks == 1

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        return rows if self.whole else _Copied.apply(rows, dim, self.ranks)

    def gather_views(self, rows: Tensor, views: int) -> Tensor:
        return rows if self.whole else super().gather_views(rows, views)

    def stack(self, value: Tensor) -> Tensor:
        return value.detach().expand(self.ranks, *value.shape).clone()

    def total(self, value: Tensor) -> Tensor:
        return value * self.ranks if self.ranks > 1 else value


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dim: int, ranks: int) -> Tensor:
        ctx.dim, ctx.own = dim, rows.shape[dim]
        return torch.cat([rows] * ranks, dim=dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.narrow(ctx.dim, 0, ctx.own).clone(), None, None


class Part:
    """The share of a method's loss that the first of several processes computes.

    Args:
        embeddings: of the whole batch, two for each image.
    """

    def __init__(self, name: str, embeddings: int, ranks: int):
        torch.manual_seed(0)
        batch = embeddings // 2
        self.method, self.share = made(name, batch), Rehearsed(batch, ranks)
        with torch.enable_grad():
            small = self.method.project(list(torch.randn(2, 2, 3, 16, 16)))
        rows = len(self.share.own)
        self.z = [torch.randn(2, rows, *z.shape[2:]).requires_grad_(z.requires_grad) for z in small]
        self.told = torch.arange(rows) % 10

    def __call__(self) -> None:
        """Compute the loss and the gradients of the projections."""
        loss, _ = compare(self.method, self.z, self.told, self.share)
        self.share.weighted(loss).backward()
        for z in self.z:
            z.grad = None


def made(name: str, images: int) -> Method:
    """A method with the widths of its defaults on a small encoder."""
    settings = METHODS[name].Settings(**{"teacher": "timm:test_resnet"} if name == "distill" else {})
    method = METHODS[name](CNN(3, widths=(4, 8, 8), read=2), settings).train()
    method.meet(images)
    if isinstance(method, TaughtMethod):
        method.learn_from(torch.randn(images, TAUGHT))
    return method


def growth(part: Part) -> int:
    """The bytes by which the peak of this process's memory grows while a share is computed."""

    def peak() -> int:
        found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())
        assert found is not None
        return 1024 * int(found[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak()
    part()
    return peak() - before


PROGRAM = """
import sys, torch
from bench.shared_loss import RANKS, Part, growth
torch.set_num_threads(1)
name, embeddings = sys.argv[1], int(sys.argv[2])
for ranks in RANKS[::-1]:
    Part(name, 64, ranks)()  # what torch loads at first use is not the loss's
print(*(growth(Part(name, embeddings, ranks)) for ranks in RANKS))
"""


def memory(name: str, embeddings: int) -> dict[int, int]:
    """`growth` for 1, 2 and 4 processes, measured in a process of its own."""
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else glibc keeps freed blocks below 32 MB
    command = [sys.executable, "-c", PROGRAM, name, str(embeddings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given_back)
    return dict(zip(RANKS, map(int, done.stdout.split()), strict=True))


def seconds(name: str, embeddings: int, rounds: int) -> dict[int, float]:
    """The CPU seconds of the shares of 1, 2 and 4 processes: the least of some rounds."""
    parts = {ranks: Part(name, embeddings, ranks) for ranks in RANKS}
    found: dict[int, list[float]] = {ranks: [] for ranks in RANKS}
    for _ in range(rounds):
        for ranks, part in parts.items():
            for _ in range(ranks):  # as many seconds for each
                start = time.process_time()
                part()
                found[ranks].append(time.process_time() - start)
    return {ranks: min(times) for ranks, times in found.items()}


def rows(name: str, embeddings: int, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each number of processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        took, held = seconds(name, embeddings, rounds), memory(name, embeddings)
    finally:
        torch.set_num_threads(threads)
    return [
        {
            "method": name,
            "embeddings": embeddings,
            "processes": ranks,
            "cpu_seconds": took[ranks],
            "times_n": ranks * took[ranks] / took[1],
            "memory_MB": held[ranks] / 1e6,
            "memory_times_n": ranks * held[ranks] / held[1],
        }
        for ranks in RANKS
    ]


def measure(sizes: dict[str, tuple[int, ...]] | None = None, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    wanted = sizes or SIZES | OTHERS
    return [row for name, counts in wanted.items() for count in counts for row in rows(name, count, rounds)]
