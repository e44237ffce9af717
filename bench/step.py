"""What a training step costs beyond the network: the real loop beside forward, backward and optimizer alone.

The bare network is the same encoder and projector, batch and optimizer on views made beforehand; its loss is the mean
square of the projections. Both run in one process, in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from typing import Any

import torch

from bench.timing import in_turn, median_ratio
from crlf.data import load
from crlf.devices import keep_freed_memory
from crlf.randomness import generator
from crlf.recipe import RECIPES
from crlf.runs import Run
from crlf.training import State, train
from crlf.views import Views

STEPS = 12


def measure(rounds: int = 7) -> list[dict[str, Any]]:
    keep_freed_memory()
    recipe = dataclasses.replace(RECIPES["default"], epochs=1)
    data = load(recipe.data)[0].first(STEPS * recipe.batch_size)
    device = torch.device("cpu")
    bare_state = State(recipe, data, device)
    make, stream = Views(recipe.augmentation), generator("cpu", "bench")
    batch = data.images[: recipe.batch_size]
    ready = torch.cat([make(batch, stream) for _ in range(recipe.views)])
    loops: list[float] = []

    def whole() -> None:
        state = State(recipe, data, device)
        with tempfile.TemporaryDirectory() as folder:
            train(Run(folder), recipe, data, state)
        loops.append(state.seconds)

    def bare() -> None:
        method, optimizers = bare_state.method.train(), bare_state.optimizers
        for _ in range(STEPS):
            method.projector(method.encoder(ready)).square().mean().backward()  # type: ignore[operator]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    seconds = in_turn({"whole": whole, "bare": bare}, rounds)
    of_loop = loops[-rounds:]  # without what is saved at the end
    return [
        {
            "what": what,
            "ms_a_step": 1000 * statistics.median(times) / STEPS,
            "of_bare": median_ratio(times, seconds["bare"]),
        }
        for what, times in (("CRLF's loop", of_loop), ("bare network", seconds["bare"]))
    ] + [{"what": "images a second", "ms_a_step": STEPS * recipe.batch_size / statistics.median(of_loop)}]
