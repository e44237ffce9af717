"""Replays a training step as one CUDA graph.

A step of a small network launches hundreds of kernels. Each launch takes the host some microseconds, and the GPU waits.
A CUDA graph launches the whole step at once. It repeats the same kernels on the same memory, so everything that changes
from step to step must be in tensors: the images, the random numbers of their views, the learning rates. Updates that
follow a schedule (`Method.after_step`) stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from crlf.methods.base import Method
from crlf.optim import keep_rates_in_tensors
from crlf.training.compile import GRAPHS
from crlf.training.gradients import Loss

WARM = 3  # steps before the graph is recorded, in which libraries choose kernels and optimizers make their state


class Take(Protocol):
    """Takes a step, as crlf.training.loop.Step does."""

    warm: int

    def __call__(self, images: Tensor, numbers: Tensor, told: Tensor | None, measured: bool = False) -> Loss: ...


class Plain(Take, Protocol):
    """A step that is taken without a graph."""

    method: Method
    optimizers: Sequence[torch.optim.Optimizer]


class CudaGraph:
    """The GPU work of a function, recorded once and repeated at each replay."""

    def __init__(self, device: torch.device):
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Any]) -> Any:
        """Record a function without running it. The first replay fills what it returns."""
        with torch.cuda.graph(self.graph):
            return function()

    def replay(self) -> None:
        self.graph.replay()


class Replayed:
    """A step that runs a few times directly and is replayed from then on.

    Args:
        step: the step.
        recorder: makes a recorder such as `CudaGraph`.
    """

    warm = WARM + 1

    def __init__(self, step: Plain, recorder: Callable[[], Any]):
        self.step, self.recorder = step, recorder
        self.taken = 0
        self.graph: Any = None
        self.inputs: list[Tensor | None] = []
        self.found: Loss | None = None

    def __call__(self, images: Tensor, numbers: Tensor, told: Tensor | None, measured: bool = False) -> Loss:
        """As `Step`. The next step overwrites the returned tensors."""
        inputs = (images, numbers, told)
        if self.taken < WARM:
            self.taken += 1
            return aside(images.device, lambda: self.step(*inputs, measured=True))
        if self.graph is None:
            self.inputs = [None if value is None else value.clone() for value in inputs]
            graph = self.recorder()
            self.found = graph.record(self.whole)
            self.graph = graph
        for kept, new in zip(self.inputs, inputs, strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        self.graph.replay()
        assert self.found is not None
        return self.found

    def whole(self) -> Loss:
        """Take the step on the kept inputs. If it replaces a buffer, such as a queue, the new values are copied into
        the old one: the next replay reads that memory."""
        images, numbers, told = self.inputs
        assert images is not None and numbers is not None
        places = [
            (module, name, value) for module in self.step.method.modules() for name, value in module._buffers.items()
        ]
        found = self.step(images, numbers, told, measured=True)
        for module, name, value in places:
            new = module._buffers[name]
            if value is not None and new is not None and new is not value:
                value.copy_(new)
                module._buffers[name] = value
        return found


def aside(device: torch.device, function: Callable[[], Loss]) -> Loss:
    """Call a function on a side stream, as CUDA graphs require before a recording; on a CPU, just call it."""
    if device.type != "cuda":
        return function()
    now, other = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    other.wait_stream(now)
    with torch.cuda.stream(other):
        found = function()
    now.wait_stream(other)
    return found


def replayed(step: Plain, mode: str, device: torch.device) -> Take:
    """The step as the recipe's `compile` asks for it: taken directly, or replayed as a graph.

    Args:
        mode: one of crlf.runtime.devices.MODES.
    """
    if mode not in GRAPHS:
        return step
    keep_rates_in_tensors(step.optimizers, device)
    return Replayed(step, lambda: CudaGraph(device))
