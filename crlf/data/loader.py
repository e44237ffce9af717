"""Batches of images on the training device: from a set held there if it fits, else read ahead from the disk.

Both give the same bits for a step. A set that does not fit is mapped from a file (crlf.data.memmap): a thread reads the
rows of the next steps while the device works, and the system drops pages that are no longer needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from crlf.runtime.devices import fits
from crlf.runtime.seeding import generator

AHEAD = 2  # steps whose batches are read ahead


class Resident:
    """The whole set on the device; `batches[step]` is uint8 (B, C, H, W)."""

    def __init__(self, images: Tensor, rows_of: Callable[[int], Tensor], device: torch.device):
        self.images, self.rows_of, self.device = images.to(device), rows_of, device

    def __getitem__(self, step: int) -> Tensor:
        return self.images[self.rows_of(step).to(self.device, non_blocking=True)]

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""


class ReadAhead:
    """Batches read ahead by a thread; `batches[step]` is uint8 (B, C, H, W) on the device."""

    def __init__(self, images: Tensor, rows_of: Callable[[int], Tensor], device: torch.device):
        self.images, self.rows_of, self.device = images, rows_of, device
        self.ahead: dict[int, Future[Tensor]] = {}
        self.thread = ThreadPoolExecutor(1, "batches")

    def __getitem__(self, step: int) -> Tensor:
        for coming in range(step, step + 1 + AHEAD):
            if coming not in self.ahead:
                self.ahead[coming] = self.thread.submit(self.read, coming)
        return self.ahead.pop(step).result().to(self.device, non_blocking=True)

    def read(self, step: int) -> Tensor:
        # numpy's take releases the GIL and uses one thread; torch's would compete with training for the cores.
        batch = torch.from_numpy(self.images.numpy().take(self.rows_of(step).numpy(), axis=0))
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown(cancel_futures=True)


def batches(images: Tensor, rows_of: Callable[[int], Tensor], device: torch.device) -> Resident | ReadAhead:
    """The batches of a training run.

    Args:
        images: uint8 (N, C, H, W), in memory or mapped.
        rows_of: returns the rows of a step's batch, int64 (B,); also called from another thread.
        device: the device of the batches.
    """
    return (Resident if fits(images.nbytes, device) else ReadAhead)(images, rows_of, device)


def batch_rows(step: int, images: int, batch_size: int, seed: int) -> Tensor:
    """The rows of a step's batch, int64 (B,): each epoch is a permutation, and its last, smaller batch is left out."""
    epoch, i = divmod(step, images // batch_size)
    return epoch_order(seed, epoch, images)[i * batch_size : (i + 1) * batch_size]


@functools.lru_cache(maxsize=2)  # the next epoch's first batches are read during the last of this one
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the images in an epoch: int64 (N,), a permutation."""
    return torch.randperm(images, generator=generator("cpu", "order", seed, epoch))
