"""What a training step costs beyond the network: the real loop beside forward, backward and optimizer alone.

The bare network is the same encoder and projector, batch and optimizer on views made beforehand; its loss is the mean
square of the projections, the cheapest there is. Beside it the same with NT-Xent. All run in one process, in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.timing import in_turn, median_ratio
from crlf.augmentation import Views
from crlf.data import load
from crlf.recipe import RECIPES
from crlf.runs.run import Run
from crlf.runtime.devices import autocast, dtype_of, keep_freed_memory
from crlf.runtime.seeding import generator
from crlf.training.loop import train
from crlf.training.state import State

STEPS = 195  # in an epoch, half of CIFAR-10: once in it the health of the features is looked at
BARE = 64  # steps of the bare network at a time


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    """In float32, and in bf16 where the device is faster with it."""
    dtypes = {dtype_of(precision, torch.device("cpu")): precision for precision in ("float32", "auto")}
    return [row for precision in dtypes.values() for row in compare(precision, rounds)]


def compare(precision: str, rounds: int) -> list[dict[str, Any]]:
    keep_freed_memory()
    recipe = dataclasses.replace(RECIPES["default"], epochs=1, precision=precision)
    data = load(recipe.data)[0].first(STEPS * recipe.batch_size)
    recipe = recipe.resolved(data)
    device = torch.device("cpu")
    state, bare_state = State(recipe, data, device), State(recipe, data, device)
    make, stream = Views(recipe.augmentation, recipe.normalisation), generator("cpu", "bench")
    ready = make(data.images[: recipe.batch_size], stream, recipe.views)
    loops: list[float] = []

    def whole() -> None:
        state.step, state.seconds, state.epoch_losses = 0, 0.0, []  # the same epoch once more
        with tempfile.TemporaryDirectory() as folder:
            train(Run(folder), recipe, data, state)
        loops.append(state.seconds)

    method, optimizers = bare_state.method.train(), bare_state.optimizers

    def mean_square() -> Tensor:
        return method.projector(method.encoder(ready)).square().mean()  # type: ignore[operator]

    def bare(loss: Callable[[], Tensor]) -> None:
        in_precision = autocast(precision, device)
        for _ in range(BARE):
            with in_precision:
                value = loss()
            value.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    things = {
        "whole": whole,
        "bare": lambda: bare(mean_square),
        "bare with NT-Xent": lambda: bare(lambda: method(ready.chunk(recipe.views))[0]),
    }
    seconds = in_turn(things, rounds)
    a_step = {what: [time / BARE for time in times] for what, times in seconds.items()}
    a_step["whole"] = [time / STEPS for time in loops[-rounds:]]  # without what is saved at the end
    name = str(dtype_of(precision, device)).removeprefix("torch.")
    return [
        {
            "precision": name,
            "what": what,
            "ms_a_step": 1000 * statistics.median(times),
            "of_bare": median_ratio(times, a_step["bare"]),
            "images_a_second": recipe.batch_size / statistics.median(times),
        }
        for what, times in (
            ("CRLF's loop", a_step["whole"]),
            ("bare network and NT-Xent", a_step["bare with NT-Xent"]),
            ("bare network", a_step["bare"]),
        )
    ]
