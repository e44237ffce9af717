"""Batches of images on the training device: from a set held there if it fits, else read or decoded ahead of the step.

All give the same bits for a step. A set that does not fit is mapped from a file (crlf.data.memmap): a thread reads the
rows of the next steps while the device works, and the system drops pages that are no longer needed. A set that stays
encoded (crlf.data.encoded) is decoded by threads, some steps ahead.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from crlf.data.encoded import Batch, Decoder, Encoded, Pixels, threads
from crlf.data.files import stores
from crlf.runtime import distributed
from crlf.runtime.devices import fits
from crlf.runtime.seeding import generator
from crlf.text import percent, say

AHEAD = 2  # steps whose batches are read ahead
DECODED = 4  # steps whose batches are decoded ahead: a large image among small ones holds up its own batch only
WATCHED = 20  # steps after which it is judged whether decoding keeps up; those before are the first of the run
WAITED = 0.05  # share of the time that steps may wait


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


class DecodeAhead:
    """Batches decoded ahead by threads; `batches[step]` is uint8 (B, C, H, W) on the device."""

    def __init__(self, images: Encoded, rows_of: Callable[[int], Tensor], device: torch.device):
        self.images, self.rows_of, self.device = images, rows_of, device
        self.decoder = Decoder(images, threads(), pin=device.type == "cuda")
        self.ahead: dict[int, Batch] = {}
        self.fetched = -1  # the last step whose files were asked of the store
        self.taken, self.waited, self.since, self.told = 0, 0.0, 0.0, False

    def __getitem__(self, step: int) -> Tensor:
        for coming in range(step, step + 1 + DECODED):
            if coming not in self.ahead:
                self.ahead[coming] = self.decoder.begin(self.rows_of(coming))
        self.fetch(step)
        begun = time.perf_counter()
        batch = self.ahead.pop(step).result()
        self.judge(begun, time.perf_counter(), len(batch))
        return batch.to(self.device, non_blocking=True)

    def fetch(self, step: int) -> None:
        """Ask the store for the files of a window of steps, so that its next pieces come while this one is used."""
        if not self.images.pieces:
            return
        ahead = step + DECODED + self.images.window // max(1, len(self.rows_of(step)) * distributed.world())
        for coming in range(max(step, self.fetched + 1), ahead + 1):
            for row in self.rows_of(coming).tolist():
                stores.blocks().want(self.images.files[row])
        self.fetched = ahead

    def judge(self, begun: float, now: float, images: int) -> None:
        """Say once if steps wait for their images."""
        self.taken += 1
        if self.taken == WATCHED:
            self.since = now
        if self.taken <= WATCHED or self.told:
            return
        self.waited += now - begun
        share, steps = self.waited / (now - self.since), self.taken - WATCHED
        if steps == WATCHED and share > WAITED and distributed.rank() == 0:
            rate, count = steps * images / (now - self.since), threads()
            why = f"steps wait {percent(share)} of their time, at {rate:,.0f} images a second of {count} threads"
            say(f"decoding does not keep up: {why} (--decode ahead decodes once; --image-size sets smaller images)")
        self.told = steps >= WATCHED

    def __enter__(self) -> DecodeAhead:
        self.decoder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.decoder.threads.shutdown(wait=False, cancel_futures=True)
        if self.fetched >= 0:
            stores.blocks().cancel()
        self.decoder.__exit__(*error)


def batches(
    images: Pixels, rows_of: Callable[[int], Tensor], device: torch.device
) -> Resident | ReadAhead | DecodeAhead:
    """The batches of a training run.

    Args:
        images: uint8 (N, C, H, W), in memory, mapped or encoded.
        rows_of: returns the rows of a step's batch, int64 (B,); also called from another thread.
        device: the device of the batches.
    """
    if isinstance(images, Encoded):
        return DecodeAhead(images, rows_of, device)
    return (Resident if fits(images.nbytes, device) else ReadAhead)(images, rows_of, device)


def batch_rows(step: int, images: int | Pixels, batch_size: int, seed: int) -> Tensor:
    """The rows of a step's batch, int64 (B,): each epoch is a permutation, and its last, smaller batch is left out.

    Args:
        images: N, or the images; those in tar files of an object store are shuffled piece by piece, others as a whole.
    """
    count = images if isinstance(images, int) else len(images)
    epoch, i = divmod(step, count // batch_size)
    if isinstance(images, Encoded) and images.pieces:
        order = piece_order(seed, epoch, images)
    else:
        order = epoch_order(seed, epoch, count)
    return order[i * batch_size : (i + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def piece_order(seed: int, epoch: int, images: Encoded) -> Tensor:
    """The order of the images in an epoch where neighbours are quicker to read together: int64 (N,), a permutation.

    The pieces are shuffled, and then the images within each window of so many: what WebDataset calls shuffled shards
    and a shuffle buffer, as a function of the seed and the epoch, for any number of ranks.
    """
    stream = generator("cpu", "pieces", seed, epoch)
    deal = torch.randperm(len(images.pieces), generator=stream).tolist()
    rows = torch.cat([images.pieces[i] for i in deal])
    return torch.cat([part[torch.randperm(len(part), generator=stream)] for part in rows.split(images.window)])


@functools.lru_cache(maxsize=2)  # the next epoch's first batches are read during the last of this one
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the images in an epoch: int64 (N,), a permutation."""
    return torch.randperm(images, generator=generator("cpu", "order", seed, epoch))
