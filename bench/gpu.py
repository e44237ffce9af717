"""A ResNet-18 in training on an NVIDIA GPU: images a second and the share of what its bf16 products could do, for
CRLF's loop beside the bare network on ready-made views, both compiled with CUDA graphs and in bf16."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.timing import each_in_turn, median_ratio
from crlf.augmentation import Views
from crlf.data import ImageSet
from crlf.methods.base import training_flops
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import Run
from crlf.runtime.devices import autocast, describe, pick_device, wait_for
from crlf.runtime.seeding import generator
from crlf.training.compile import GRAPHS, compiled
from crlf.training.graphs import Replayed, replayed
from crlf.training.loop import Step, train
from crlf.training.state import State

SIDE = 8192  # of the square matrices whose product measures the peak


def measure(
    device: str = "cuda",
    batches: Sequence[int] = (512, 1024),
    steps: int = 100,
    rounds: int = 5,
    side: int = SIDE,
    **settings: Any,
) -> list[dict[str, Any]]:
    """A row for the loop and one for the network, of each batch.

    Raises:
        InputError: there is no GPU.
    """
    place = pick_device(device)
    peak = products_a_second(place, side)
    rows = []
    for batch in batches:
        recipe = dataclasses.replace(RECIPES["speedrun-knn90"], views=2, batch_size=batch, epochs=1, precision="bf16")
        recipe = dataclasses.replace(recipe, **settings)
        rows += compare(recipe, place, steps, rounds, peak)
    return rows


def products_a_second(device: torch.device, side: int, times: int = 20) -> float:
    """Operations a second of bf16 products of square matrices, the best of a few tries."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(4):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(times):
            a @ b
        wait_for(device)
        found.append(2 * side**3 * times / (time.perf_counter() - start))
    return max(found)


def compare(recipe: Recipe, device: torch.device, steps: int, rounds: int, peak: float) -> list[dict[str, Any]]:
    count, batch = steps * recipe.batch_size, recipe.batch_size
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(images, None, (), [str(i) for i in range(count)])
    recipe = recipe.resolved(data)
    state, bare = State(recipe, data, device), State(recipe, data, device)

    def whole() -> float:
        state.step, state.seconds, state.epoch_losses = 0, 0.0, []  # the same epoch once more
        with tempfile.TemporaryDirectory() as folder:
            train(Run(folder), recipe, data, state)
        return state.seconds - state.first_step

    make_view = Views(recipe.augmentation, recipe.normalisation)
    ready = make_view(images[:batch].to(device), generator(device, "bench"), recipe.views)
    warm = Replayed.warm if recipe.compile in GRAPHS else Step.warm * (recipe.compile != "none")
    with bare_network(bare, recipe, ready.chunk(recipe.views), steps - warm) as network:
        seconds = each_in_turn({"CRLF's loop": whole, "bare network": network}, rounds)
    height, width = ready.shape[2:]
    flops = recipe.views * training_flops(state.method, recipe.views, 3, height, width)
    count = (steps - warm) * batch  # the first steps of each epoch compile, or record the graph
    return [
        {
            "device": describe(device),
            "batch": batch,
            "view": f"{height} px",
            "what": what,
            "images_a_second": count / statistics.median(times),
            "of_bare": median_ratio(times, seconds["bare network"]),
            "TFLOPS": flops * count / statistics.median(times) / 1e12,
            "share_of_peak": flops * count / statistics.median(times) / peak,
        }
        for what, times in seconds.items()
    ]


class Ready(Views):
    """The same views at every step."""

    def __init__(self, recipe: Recipe, views: Sequence[Tensor]):
        super().__init__(recipe.augmentation, recipe.normalisation)
        self.views = tuple(views)

    def of_part(self, *args: Any) -> tuple[Tensor, ...]:
        return self.views


@contextlib.contextmanager
def bare_network(state: State, recipe: Recipe, ready: Sequence[Tensor], steps: int) -> Iterator[Callable[[], float]]:
    """Gives a function that takes so many steps on views that are there, and returns their seconds."""
    make_view = Ready(recipe, ready)
    step = Step(recipe, state.method.train(), state.optimizers, make_view, state.device)
    nothing = torch.zeros(1, device=state.device)
    with compiled(state.method, make_view, recipe.compile):
        take = replayed(step, recipe.compile, state.device)

        def run() -> float:
            wait_for(state.device)
            start = time.perf_counter()
            for _ in range(steps):
                take(nothing, nothing, None, False)
            wait_for(state.device)
            return time.perf_counter() - start

        yield run


def stages(recipe: Recipe, device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds of each stage of a plain step, waiting for the device after each: the median over the steps."""
    images = torch.randint(0, 256, (recipe.batch_size, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(images, None, (), [str(i) for i in range(len(images))])
    recipe = recipe.resolved(data)
    state, pixels = State(recipe, data, device), images.to(device)
    make_view = Views(recipe.augmentation, recipe.normalisation)
    in_precision = autocast(recipe.precision, device)
    taken: dict[str, list[float]] = {name: [] for name in ("views_ms", "forward_ms", "backward_ms", "optimizer_ms")}

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        wait_for(device)
        start = time.perf_counter()
        found = stage()
        wait_for(device)
        taken[name].append(1000 * (time.perf_counter() - start))
        return found

    def forward(views: Tensor) -> Tensor:
        with in_precision:
            return state.method(views.chunk(recipe.views))[0]

    def move() -> None:
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    for i in range(1 + steps):
        views = timed("views_ms", lambda i=i: make_view(pixels, generator(device, i), recipe.views))  # type: ignore[misc]
        loss = timed("forward_ms", lambda views=views: forward(views))  # type: ignore[misc]
        timed("backward_ms", loss.backward)
        timed("optimizer_ms", move)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}
