"""Many short runs: one after another, side by side on streams, or in several processes.

A small network leaves most of a GPU idle: what counts is which of these fills it best, and `race` measures that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from bench.gpu_program import knn
from crlf.augmentation import Views, view_size
from crlf.data import ImageSet
from crlf.data.loader import batch_rows
from crlf.encoders import Frozen, build
from crlf.methods.base import training_flops
from crlf.optim import schedule, set_rates
from crlf.recipe import Recipe
from crlf.runtime.devices import wait_for
from crlf.runtime.seeding import generator
from crlf.training.graphs import replayed
from crlf.training.loop import Step
from crlf.training.state import State

PROBED = 15_000  # training images that the probes see
STREAMS = 4
PROCESSES = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """A short run: its recipe, and its length in operations."""

    recipe: Recipe
    pflop: float
    key: str
    """Names it among the results."""


class Training:
    """A short run in progress: images, weights and all on the device; nothing is saved."""

    def __init__(self, job: Job, data: ImageSet, device: torch.device):
        recipe = job.recipe.resolved(data)
        self.job, self.data, self.device = dataclasses.replace(job, recipe=recipe), data, device
        self.state = State(recipe, data, device)
        self.make_view = Views(recipe.augmentation, recipe.normalisation)
        step = Step(recipe, self.state.method.train(), self.state.optimizers, self.make_view, device)
        mode = recipe.compile if device.type == "cuda" else "none"
        self.take = replayed(step, mode, device)
        side = view_size(data.images.shape[2], recipe.augmentation)
        a_view = training_flops(self.state.method, recipe.views, data.images.shape[1], side, side)
        self.a_step = a_view * recipe.views * recipe.batch_size
        self.steps = max(1, round(job.pflop * 1e15 / self.a_step))
        self.done = 0

    def advance(self) -> None:
        """One step."""
        recipe, share = self.job.recipe, (self.done + 0.5) / self.steps
        set_rates(
            self.state.optimizers,
            lr=schedule(share, recipe.optim.warmup, recipe.optim.final_lr),
            decay=schedule(share, 0.0, recipe.optim.final_weight_decay),
        )
        rows = batch_rows(self.done, len(self.data), recipe.batch_size, recipe.seed)
        batch = self.data.images[rows.to(self.device, non_blocking=True)]
        stream = generator(self.device, "views", recipe.seed, self.done)
        self.take(batch, self.make_view.numbers(len(batch), recipe.views, stream), None)
        self.done += 1
        self.state.method.after_step(self.done / self.steps)

    def scores(self, held: ImageSet) -> dict[str, float]:
        """kNN and linear accuracy (least squares) on held-out images, in percent, read as shipped."""
        recipe, few = self.job.recipe, self.data.first(PROBED)
        encoder = build(recipe.encoder, 3, self.data.images.shape[2], recipe.embedding.regions)
        encoder.load_state_dict(self.state.method.encoder.state_dict())
        frozen = Frozen(encoder, recipe.embedding.mirror).to(self.device)
        assert few.labels is not None and held.labels is not None
        x, z = (knn.embed(frozen, part.decoded, recipe.normalisation) for part in (few, held))
        y, truth = few.labels.to(self.device), held.labels.to(self.device)
        return {"knn_%": 100 * knn.accuracy(x, y, z, truth), "ridge_%": 100 * knn.ridge(x, y, z, truth)}


def on(device: torch.device, part: ImageSet) -> ImageSet:
    """The same images, on the device."""
    return dataclasses.replace(part, images=part.decoded.to(device))


Found = Iterator[tuple[Job, dict[str, Any]]]


def in_turn(jobs: Sequence[Job], train: ImageSet, held: ImageSet, device: torch.device) -> Found:
    """One run after another."""
    for job in jobs:
        start, run = time.perf_counter(), Training(job, train, device)
        while run.done < run.steps:
            run.advance()
        yield job, {**run.scores(held), "steps": run.steps, "run_seconds": time.perf_counter() - start}


def in_streams(
    jobs: Sequence[Job], train: ImageSet, held: ImageSet, device: torch.device, width: int = STREAMS
) -> Found:
    """A few runs at a time, each on a stream of its own, a step of each in turn; on a CPU there are no streams."""
    waiting = list(reversed(jobs))
    running: list[tuple[Training, torch.cuda.Stream | None, float]] = []
    while waiting or running:
        while waiting and len(running) < width:
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            with on_stream(stream):
                running.append((Training(waiting.pop(), train, device), stream, time.perf_counter()))
        for run, stream, start in list(running):
            with on_stream(stream):
                if run.done < run.steps:
                    run.advance()
                else:
                    found = run.scores(held)
                    running.remove((run, stream, start))
                    yield run.job, {**found, "steps": run.steps, "run_seconds": time.perf_counter() - start}


def on_stream(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream else contextlib.nullcontext()


_shared: tuple[ImageSet, ImageSet, torch.device] | None = None  # of a process of `in_processes`


def _prepare(load: Callable[[], tuple[ImageSet, ImageSet]], device: torch.device, setup: Callable[[], None]) -> None:
    global _shared
    setup()
    torch.set_num_threads(1)
    train, held = (on(device, part) for part in load())
    _shared = train, held, device


def _one(job: Job) -> dict[str, Any]:
    assert _shared is not None
    return next(in_turn([job], *_shared))[1]


def in_processes(
    jobs: Sequence[Job],
    load: Callable[[], tuple[ImageSet, ImageSet]],
    device: torch.device,
    setup: Callable[[], None],
    width: int = PROCESSES,
) -> Found:
    """A few processes, a run at a time in each; the GPU shares its time among them.

    Args:
        load: what gives the images, in each process.
        setup: what makes the recipes' names known there.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(width, context, _prepare, (load, device, setup)) as pool:
        yield from zip(jobs, pool.map(_one, jobs), strict=True)


def race(
    job: Job, train: ImageSet, held: ImageSet, device: torch.device, steps: int, width: int = STREAMS
) -> Iterator[dict[str, Any]]:
    """Steps a second of all runs together: alone with and without graphs, side by side on streams, stacked in one."""
    modes = ("none", "graphs") if device.type == "cuda" else ("none",)
    for mode in modes:
        recipe = dataclasses.replace(job.recipe, compile=mode)
        for count in (1, width):
            runs = [Training(dataclasses.replace(job, recipe=recipe), train, device) for _ in range(count)]
            streams = [torch.cuda.Stream(device) if device.type == "cuda" and count > 1 else None for _ in runs]
            wait_for(device)
            for timed in (False, True):  # the first steps warm up, and record the graphs
                start = time.perf_counter()
                for _ in range(steps if timed else 5):
                    for run, stream in zip(runs, streams, strict=True):
                        with on_stream(stream):
                            run.advance()
                wait_for(device)
                seconds = time.perf_counter() - start
            way = f"{count} at a time, compile {mode}"
            yield {"way": way, "compile": mode, "width": count, "steps_a_second": steps * count / seconds}
            del runs
    yield {"way": f"{width} stacked by vmap", "steps_a_second": stacked(job, train, device, steps, width)}


def stacked(job: Job, train: ImageSet, device: torch.device, steps: int, width: int) -> float:
    """Steps a second of all models together when torch.func.vmap trains them as one: forward and backward alone.

    Its convolutions become grouped ones. The optimizer is not in it, which favours it.
    """
    recipe = job.recipe.resolved(train)
    models = [State(dataclasses.replace(recipe, seed=seed), train, device).method.train() for seed in range(width)]
    weights, statistics = torch.func.stack_module_state(list(models))
    called: Callable[..., Any] = torch.func.functional_call
    make, model = Views(recipe.augmentation, recipe.normalisation), models[0]
    views = torch.stack([make(train.images[: recipe.batch_size], generator(device, i), 2) for i in range(width)])

    def loss(weights: dict[str, Tensor], statistics: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            h = called(model.encoder, (own(weights, "encoder."), own(statistics, "encoder.")), x)
            z = called(model.projector, (own(weights, "projector."), own(statistics, "projector.")), h)
        z = torch.nn.functional.normalize(z.float(), dim=1)
        return torch.logsumexp(z @ z.T / 0.2, dim=1).mean()

    each = torch.func.vmap(torch.func.grad(loss), randomness="different")
    for timed in (False, True):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps if timed else 3):
            each(weights, statistics, views)
        wait_for(device)
    return steps * width / (time.perf_counter() - start)


def own(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of one part, by its own names."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
