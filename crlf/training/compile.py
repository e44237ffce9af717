"""torch.compile for the parts of a step: the views, the projections, the loss and their backward passes.

Random numbers, which depend on (seed, step), and communication between processes stay outside of the compiled parts.
The first step takes half a minute or more, and so does the first step after a shape changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from crlf.augmentation import Views
from crlf.errors import InputError
from crlf.methods.base import Method
from crlf.recipe import Recipe
from crlf.runtime import distributed

BACKEND = "inductor"
KERNELS = ("kernels", "all")  # the modes that compile
GRAPHS = ("graphs", "all")  # the modes that replay a step (crlf.training.graphs)


def require_compilable(recipe: Recipe, device: torch.device) -> None:
    """Raise InputError if the recipe asks for a kind of compiling that cannot be used here."""
    if recipe.compile != "none" and recipe.shard == "full":
        raise InputError(
            f"shard 'full' needs compile 'none', not {recipe.compile!r}: compiled parts hold whole weights"
        )
    if recipe.compile not in GRAPHS:
        return
    asked = f"compile {recipe.compile!r}"
    if device.type != "cuda":
        raise InputError(f"{asked} needs device 'cuda', not {device.type!r}: 'kernels' compiles anywhere")
    if distributed.world() > 1:
        raise InputError(f"{asked} runs in one process, not in {distributed.world()}: 'kernels' compiles in any number")
    for name, value, free in (
        ("micro_batch", recipe.micro_batch, 0),
        ("frozen_norm", recipe.frozen_norm, False),
        ("final_weight_decay", recipe.optim.final_weight_decay, 1.0),
    ):
        if value != free:
            raise InputError(f"{asked} needs {name} {free}, not {value}: 'kernels' takes any")


@contextlib.contextmanager
def compiled(method: Method, views: Views, mode: str) -> Iterator[None]:
    """Compile the method and its views within this block. Results are the same up to rounding.

    Args:
        mode: one of devices.MODES. "kernels" and "all" compile; the other modes change nothing.
    """
    if mode not in KERNELS:
        yield
        return

    def fast(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False, backend=BACKEND)

    plain = views.apply
    method.project, method.loss = fast(method.project), fast(method.loss)  # type: ignore[method-assign]
    views.apply = fast(plain)
    try:
        yield
    finally:
        del method.project, method.loss
        views.apply = plain
