"""What a training step asks of a device: nothing that it has to wait for, and nothing that Apple's GPUs lack.

There is no GPU where CI runs: the operators of a step are recorded on the CPU, and judged by what torch says of them.
"""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from small_methods import LABELS, met, narrow
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import crlf
from crlf import encoders
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED
from crlf.embedding.embed import embed_images
from crlf.encoders import CNN, Frozen
from crlf.methods import METHODS
from crlf.methods.base import loss_of
from crlf.optim import OPTIMIZERS, OptimSettings
from crlf.recipe import Recipe

IMAGES = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
# Operators whose result the host must read, or for which it brings numbers: on a GPU it waits for each of them.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh", "is_nonzero", "item")


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, and the dtypes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [t for t in (found if isinstance(found, list | tuple) else [found]) if isinstance(t, torch.Tensor)]
        self.seen.setdefault(str(func).removeprefix("aten."), set()).update(t.dtype for t in tensors)
        return found


def tiny(name: str) -> torch.nn.Module:
    return CNN(3, widths=(4, 8, 8), read=2) if name == "cnn" else encoders.build(name, 3, 24)


@functools.cache
def step(method: str = "simclr", encoder: str = "cnn", optimizer: str = "muon", settings: ViewSettings | None = None):
    """The operators of a step: views, forward, loss, backward; and those of the optimizer."""
    model = met(METHODS[method](tiny(encoder), narrow(method)), len(IMAGES)).train()
    movers = OPTIMIZERS[optimizer](list(model.named_parameters()), OptimSettings(optimizer=optimizer))
    views, generator = Views(settings or ViewSettings(), PUBLISHED["cifar10"]), torch.Generator().manual_seed(0)
    with sdpa_kernel(SDPBackend.MATH), Recorder() as learning:  # the CPU has a kernel of its own, and so has MPS
        loss_of(model, views(IMAGES, generator, 2).chunk(2), LABELS)[0].backward()
        model.after_step(0.5)
    with Recorder() as moving:
        for mover in movers:
            mover.step()
            mover.zero_grad()
    return learning.seen, moving.seen


EVERY = [
    *(pytest.param({"method": name}, id=name) for name in METHODS),
    *(pytest.param({"encoder": name}, id=name) for name in ("resnet18", "vit_tiny")),
    pytest.param({"encoder": "resnet50"}, id="resnet50", marks=pytest.mark.long),
    pytest.param({"settings": ViewSettings(blur=0.5, resolution=1.0)}, id="blur"),
    *(pytest.param({"optimizer": name}, id=name) for name in OPTIMIZERS),
]


@pytest.mark.parametrize("what", EVERY)
def test_a_step_waits_for_nothing(what: dict):
    learning, _ = step(**what)
    assert len(learning) > 20
    assert not [name for name in learning if name.split(".")[0] in WAITING]


def test_a_step_that_waits_is_noticed():
    with Recorder() as found:
        torch.ones(3).new_tensor([1.0, 2.0])
        torch.ones(1).item()
    assert {name.split(".")[0] for name in found.seen} >= {"lift_fresh", "_local_scalar_dense"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compile", ["none", "kernels"])
def test_on_a_gpu_more_steps_wait_no_more_often(tmp_path: Path, compile: str):
    """torch warns of each wait; runs of one epoch wait for their end alone, however many steps it has."""

    def waits(subset: int) -> int:
        recipe = Recipe(data="shapes", subset=subset, batch_size=16, views=2, epochs=1, compile=compile)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                crlf.pretrain(recipe, out=tmp_path / str(subset), device="cuda", overwrite=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in heard)

    waits(48)  # the first one compiles, and fills caches
    assert waits(48) == waits(112)  # 3 steps and 7: both too few for a second look at the features


# Apple's GPUs, by what torch's own table says is there for them: no Mac is at hand.


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Every operator of torch, from the file that its dispatcher is made of."""
    path = os.path.join(os.path.dirname(torchgen.__file__), "packaged/ATen/native/native_functions.yaml")
    with open(path, encoding="utf-8") as file:
        rows = yaml.safe_load(file)
    return {row["func"].split("(")[0]: row for row in rows}


def on_apple(operator: str) -> bool:
    """Whether an operator, such as "add.Tensor", has a kernel for MPS, or is made of others on every device."""
    row = table().get(operator) or table().get(operator.removesuffix(".default"))
    if row is None:
        return operator.startswith(("detach", "prim", "profiler"))
    if "structured_delegate" in row:
        row = table()[row["structured_delegate"]]
    keys = ", ".join(row.get("dispatch", {"CompositeImplicitAutograd": ""}))
    return "MPS" in keys or "Composite" in keys


def test_the_table_tells_them_apart():
    assert on_apple("add.Tensor") and on_apple("convolution.default") and on_apple("native_batch_norm.default")
    assert not on_apple("_linalg_eigvals.default") and not on_apple("ormqr.default")


@pytest.mark.parametrize("what", EVERY)
def test_a_step_asks_nothing_that_apples_gpus_lack(what: dict):
    for seen in step(**what):
        assert not [name for name in seen if not on_apple(name)]
        assert not [name for name, dtypes in seen.items() if torch.float64 in dtypes or torch.complex64 in dtypes]


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit_tiny"])
def test_embedding_asks_nothing_that_apples_gpus_lack(name: str):
    with sdpa_kernel(SDPBackend.MATH), Recorder() as found:
        embed_images(Frozen(tiny(name), mirror=True), IMAGES, PUBLISHED["cifar10"], 4)
    assert not [name for name in found.seen if not on_apple(name)]
    assert not [name for name, dtypes in found.seen.items() if torch.float64 in dtypes]
