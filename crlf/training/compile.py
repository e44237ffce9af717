"""torch.compile of a step's parts: the views, what a method projects, its loss, and the backward passes of both.

Between them stand what no graph holds: random numbers that depend on (seed, step), and what several processes tell each
other. It takes long at the first step (half a minute and more), and again when a shape changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from crlf.augmentation import Views
from crlf.errors import InputError
from crlf.methods.base import Method
from crlf.runtime.devices import MODES

BACKEND = "inductor"


def require_graphs(mode: str, device: torch.device) -> None:
    """Raise InputError where CUDA graphs are asked for and there is no CUDA."""
    if mode == "graphs" and device.type != "cuda":
        raise InputError(f"compile 'graphs' needs device 'cuda', not {device.type!r}: 'kernels' compiles anywhere")


@contextlib.contextmanager
def compiled(method: Method, views: Views, mode: str) -> Iterator[None]:
    """Within this block the method and its views are compiled; what they compute is the same but for rounding.

    Args:
        mode: one of devices.MODES: none leaves all as it is; kernels fuses what follows on each other; graphs also
            replays the kernels of each part with one launch (CUDA graphs).
    """
    if mode == "none":
        yield
        return

    def fast(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False, backend=BACKEND, mode=MODES[mode])

    plain = views.apply
    method.project, method.loss = fast(method.project), fast(method.loss)  # type: ignore[method-assign]
    views.apply = fast(plain)
    try:
        yield
    finally:
        del method.project, method.loss
        views.apply = plain


def new_step(mode: str) -> None:
    """What the graphs of the step before have given may be written over."""
    if mode == "graphs":
        torch.compiler.cudagraph_mark_step_begin()
