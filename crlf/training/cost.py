"""Estimates the time, memory and disk space of a run before it starts, from a trial on a few images."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crlf import encoders
from crlf.augmentation import Views, view_size
from crlf.data import ImageSet
from crlf.methods import Method
from crlf.methods.base import IndexedMethod, loss_of, training_flops
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.runtime.devices import autocast, fits, memory_used, wait_for
from crlf.runtime.seeding import generator
from crlf.text import duration, size

TRIAL = 32  # images; on a GPU the whole batch
REPEATS = 5
REPORT = 8_000_000  # bytes of the figures and the report


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated cost of a run."""

    seconds: float
    """Training time."""
    epochs: float
    """The epochs asked for, or those that fit in the time budget."""
    memory: int
    """Peak memory in bytes; on a GPU, of its memory."""
    disk: int
    """Final size of the run folder in bytes."""

    def __str__(self) -> str:
        plural = "" if self.epochs == 1 else "s"
        return (
            f"estimate: {duration(self.seconds)} of training ({self.epochs:.3g} epoch{plural}), "
            f"{size(self.memory)} of memory, {size(self.disk)} on disk"
        )


def estimate(
    recipe: Recipe, data: ImageSet, method: Method, optimizers: list[torch.optim.Optimizer], done: float = 0.0
) -> Estimate:
    """Estimate the cost of training `method` on its device. The trial uses copies, so nothing changes.

    Args:
        done: the share of the run that is done, in 0..1.
    """
    device = next(method.parameters()).device
    method, optimizers = copy.deepcopy((method.train(), optimizers))
    parts = distributed.parts_of(recipe.batch_size, recipe.micro_batch)  # of this process
    part = max(map(len, parts))
    images = max(2, min(part, TRIAL if device.type == "cpu" else part))  # a loss compares two or more
    scale = sum(map(len, parts)) / images
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        activations = saved_bytes(lambda: forward(recipe, data, method, images, device))
        learn = fastest(lambda: forward(recipe, data, method, images, device).backward(), device)
        move = fastest(lambda: [optimizer.step() for optimizer in optimizers], device)
    steps = recipe.steps_per_epoch(len(data))
    forwards = 1.0 if len(parts) == 1 else 4 / 3  # a second one, beside a backward pass of two
    epoch = steps * (scale * forwards * learn + move)  # seconds
    epochs = 60 * recipe.budget / epoch if recipe.budget else recipe.epochs
    weights = sum(p.nbytes for p in method.parameters())
    moments = sum(
        value.nbytes
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    resident = data.images.nbytes if fits(data.images.nbytes, device) else 0  # else a few batches (crlf.data.loader)
    held = 2 * weights + moments + resident
    # A test set has about a fifth of the images; the arrays and the table hold each row.
    rows = 12 * embedding_bytes(recipe, data) // 5
    return Estimate(
        seconds=epochs * epoch * (1 - done),
        epochs=epochs,
        memory=held + int(part / images * activations) + memory_used(device),
        disk=rows + 2 * weights + moments + REPORT,
    )


def embedding_bytes(recipe: Recipe, data: ImageSet) -> int:
    """Size in bytes of the file of training embeddings."""
    _, channels, *sides = data.images.shape
    return 4 * len(data) * encoders.embedding_dim(recipe.encoder, channels, min(sides), recipe.embedding)


def forward(recipe: Recipe, data: ImageSet, method: Method, images: int, device: torch.device) -> Tensor:
    """The loss of the first images, on a training step's path."""
    stream = generator(device, "views", recipe.seed, "estimate")
    make_view = Views(recipe.augmentation, recipe.normalisation)
    views = make_view.of_batch(data.images[:images].to(device), recipe.views, stream)
    with autocast(recipe.precision, device):
        labels = None if data.labels is None else data.labels[:images].to(device)
        told = torch.arange(images, device=device) if isinstance(method, IndexedMethod) else labels
        return loss_of(method, views, told)[0]


def flops_of_view(recipe: Recipe, method: Method, channels: int, height: int, width: int, forwards: int = 1) -> float:
    """Floating-point operations per view in training on images of this size, see `training_flops`."""
    views = recipe.augmentation
    large, small = ([view_size(side, s) for side in (height, width)] for s in (views, views.of_local))
    return training_flops(method, recipe.views, channels, large[0], large[1], forwards, small)


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `compute`."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # a node that saves its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return sum(storages.values())


def fastest(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of `REPEATS` calls: other load can only make a call slower."""
    return min(timed(act, device) for _ in range(REPEATS))


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes."""
    wait_for(device)
    start = time.perf_counter()
    act()
    wait_for(device)
    return time.perf_counter() - start
