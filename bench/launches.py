"""Kernels that a step launches on a GPU, stage by stage, counted on the CPU, beside the time of its products.

An operator counts as one launch, unless it only changes how memory is looked at. A launch takes the host some five
microseconds: where a step's launches take longer than its products, the GPU waits, and the step is to be replayed as a
graph (`--compile graphs`). Muon goes its way for GPUs, all matrices of a shape at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bench.plan import PEAK
from crlf import encoders, optim
from crlf.augmentation import Views, view_size
from crlf.data import PUBLISHED
from crlf.methods import METHODS
from crlf.methods.base import training_flops
from crlf.optim import muon_step
from crlf.recipe import RECIPES

LAUNCH = 5e-6  # seconds of the host for each; not measured here
SHARE = 0.4  # of the peak that the products may reach; not measured here
NO_KERNEL = ("empty", "detach", "alias", "new_empty", "lift", "_local_scalar", "resize")


class Launches(TorchDispatchMode):
    """Counts operators that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not view and not func._schema.name.removeprefix("aten::").startswith(NO_KERNEL):
            self.count += 1
        return func(*args, **(kwargs or {}))


def measure(
    names: Sequence[str] = ("cnn", "resnet18", "vit_tiny"), recipe: str = "speedrun-knn90", batch: int = 512
) -> list[dict[str, Any]]:
    """A row for each encoder, with the recipe's views and batches of 512 images."""
    return [counted(name, recipe, batch) for name in names]


def counted(name: str, recipe_name: str, batch: int, images: int = 4) -> dict[str, Any]:
    recipe = dataclasses.replace(RECIPES[recipe_name], encoder=name)
    method = METHODS[recipe.method](encoders.build(name, 3, 32), recipe.head).train()
    movers = optim.OPTIMIZERS[recipe.optim.optimizer](list(method.named_parameters()), recipe.optim)
    optim.keep_rates_in_tensors(movers, torch.device("cpu"))  # Adam's fused kernel, as in a graph
    make_view = Views(recipe.augmentation, PUBLISHED["cifar10"])
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    row: dict[str, Any] = {"encoder": name}
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(mock.patch.object(muon_step, "alike_in_shape", by_shape))
        stack.enter_context(mock.patch.object(muon_step, "through_gram", muon_step.plain_iteration))
        for _ in range(2):  # the first one makes the optimizer's state
            views = count(row, "views", lambda: make_view(pixels, torch.Generator(), recipe.views))
            loss = count(row, "forward", lambda views=views: method(views.chunk(recipe.views))[0])  # type: ignore[misc]
            count(row, "backward", loss.backward)
            count(row, "optimizer", lambda: [(mover.step(), mover.zero_grad()) for mover in movers])
    row["launches"] = sum(row[stage] for stage in ("views", "forward", "backward", "optimizer"))
    side = view_size(32, recipe.augmentation)
    products = recipe.views * batch * training_flops(method, recipe.views, 3, side, side)
    row["ms of launches"] = 1000 * LAUNCH * row["launches"]
    row["ms of products"] = 1000 * products / (SHARE * PEAK)
    row["bound by"] = "launches" if row["ms of launches"] > row["ms of products"] else "products"
    return row


def count(row: dict[str, Any], stage: str, do: Callable[[], Any]) -> Any:
    with Launches() as launches:
        found = do()
    row[stage] = launches.count
    return found


def by_shape(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """As on a GPU."""
    groups: dict[Any, list[Tensor]] = {}
    for p in parameters:
        groups.setdefault(p.flatten(1).shape, []).append(p)
    return list(groups.values())
