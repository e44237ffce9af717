"""What each of several processes does in tests/runtime/test_distributed.py, and the one that they are held against.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=… MASTER_PORT=… python tests/two_ranks.py FOLDER [killed]

All of it is in float64: what differs then is the order of sums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from small_methods import narrow, small, views_of
from torch import Tensor

from crlf import encoders
from crlf.encoders import CNN
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.byol import BYOL
from crlf.optim import OPTIMIZERS, OptimSettings, whole
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.runtime.interrupts import Interrupted
from crlf.training import pretrain
from crlf.training.gradients import gradients
from crlf.training.parallel import engine_of

BATCH = 9  # two ranks have 4 and 5 of it, four have 2, 2, 2 and 3
SGD = OptimSettings(optimizer="sgd", lr=0.02, lr_per=0, momentum=0.9, warmup=0.0)
OPTIM = {"simclr": OptimSettings(), "vicreg": dataclasses.replace(SGD, lr=0.002)}  # the first: Muon


def one_step(name: str, most: int = 0, frozen: bool = False, local: int = 0, shard: str = "none") -> dict[str, Any]:
    """The loss, what is logged, every gradient and every buffer, after a pass over this rank's part of a batch.

    Args:
        most: images in a part of the rank's part.
        frozen: batch norms use what they remember: the parts are then exactly the whole.
        local: small views beside two large ones.
        shard: where the weights of several processes lie.
    """
    method, parts = small(name).double(), distributed.parts_of(BATCH, most)
    views = [view.double() for view in views_of(2 + local, batch=BATCH)]
    views[2:], method.local_views = [view[:, :, 2:10, 2:10] for view in views[2:]], local
    labels = (torch.arange(BATCH) % 3)[parts[0].start : parts[-1].stop]

    def views_in(part: range) -> list[Tensor]:
        return [view[part.start : part.stop] for view in views]

    engine = engine_of(method, BATCH, len(parts), shard)
    loss, stats = gradients(method, views_in, parts, labels, contextlib.nullcontext(), frozen, engine)
    found = {f"gradient of {n}": whole(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    buffers = {n: b for n, b in method.named_buffers() if "num_batches" not in n}
    return {"loss": loss, **stats, **found, **buffers}


class Double(pretrain.State):
    """A run in float64."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.method.double()
        self.losses = self.losses.double()
        for module in self.method.modules():
            if isinstance(module, CNN):
                module.register_forward_pre_hook(lambda module, views: (views[0].double(),))


def twenty_steps(
    name: str, out: Path, resume: bool = False, shard: str = "none", optim: OptimSettings | None = None
) -> dict[str, Tensor]:
    """The losses, and the state of a method, after 20 steps of `crlf.pretrain`."""
    recipe = Recipe(
        method=name, data="shapes", subset=10 * BATCH, batch_size=BATCH, epochs=2, views=2,
        head=narrow(name), optim=optim or OPTIM.get(name, SGD), shard=shard,
    )  # fmt: skip
    states: list[Double] = []
    pretrain.State = lambda *args: states.append(Double(*args)) or states[-1]  # type: ignore[misc, assignment]
    run = pretrain.pretrain(recipe, out=out, device="cpu", resume=resume)
    held = states[0].method.state_dict().items()  # of the first rank whole; others may have parts
    weights = {key: value for key, value in held if not hasattr(value, "full_tensor")}
    return {"losses": torch.from_numpy(run.array("loss.npy")), **weights}


@contextlib.contextmanager
def signalled(number: int, step: int) -> Iterator[list[int]]:
    """BYOL's last rank sends itself a signal in a step, counted from 1; the steps that were begun."""
    project, seen = BYOL.project, [0]

    def with_signal(method: BYOL, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        seen[0] += 1
        if seen[0] == step and distributed.rank() == distributed.world() - 1:
            os.kill(os.getpid(), number)
        return project(method, views)

    BYOL.project = with_signal  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        BYOL.project = project  # type: ignore[method-assign]


def stopped(out: Path, shard: str = "none") -> tuple[int, int]:
    """The exit code of a run whose last rank alone gets a SIGTERM in its eighth step, and the steps it did."""
    with signalled(signal.SIGTERM, 8) as seen:
        try:
            twenty_steps("byol", out, shard=shard)
        except Interrupted as stop:
            return stop.exit_code, seen[0]
    raise AssertionError("it was not stopped")


def sharded(folder: Path) -> dict[str, Any]:
    """What a process finds that holds a part of every weight: steps of every method, whole and in parts, runs with
    every optimizer, and one that is stopped and resumed."""
    world, steps = distributed.world(), {}
    for name in METHODS:
        parted = one_step(name, 2 if world > 1 else 0, frozen=True, shard="full")
        steps[name] = {"step": one_step(name, shard="full"), "parted": parted}
    runs = {
        optim: twenty_steps("byol", folder / f"{optim}{world}", shard="full", optim=OptimSettings(optimizer=optim))
        for optim in OPTIMIZERS
    }
    runs["gathered in every method"] = twenty_steps("dino", folder / f"sharded{world}", shard="full")
    out = folder / f"interrupted{world}"
    stopped(out, "full")
    return {"steps": steps, "trained": runs | {"resumed": twenty_steps("byol", out, resume=True, shard="full")}}


def killed(out: Path) -> None:
    """The last rank is killed in its 13th step, after a checkpoint; the others end by themselves."""
    with signalled(signal.SIGKILL, 13):
        twenty_steps("byol", out)


def refused(out: Path) -> str:
    """What comes of a run in a folder that holds another."""
    try:
        twenty_steps("byol", out)
    except InputError as error:
        return str(error)
    except SystemExit as end:
        return f"exit {end.code}"
    raise AssertionError("it was not refused")


def shrink() -> None:
    """A small network, and no trial step before the first."""
    encoders.ENCODERS["cnn"] = lambda channels, size, regions: CNN(channels, regions, widths=(4, 8, 8), read=2)
    pretrain.tell_cost = lambda state, data: None


def everything(folder: Path) -> dict[str, Any]:
    return {
        "step": {name: one_step(name) for name in METHODS},
        "parted": {name: one_step(name, 2 if distributed.world() > 1 else 0, frozen=True) for name in METHODS},
        "local": {name: one_step(name, local=2) for name, kind in METHODS.items() if kind.takes_local},
        "trained": {name: twenty_steps(name, folder / f"{name}{distributed.world()}") for name in METHODS},
        "stopped": stopped(folder / f"stopped{distributed.world()}"),
        "refused": refused(folder / f"stopped{distributed.world()}"),
        "sharded": sharded(folder),
        "highest": distributed.highest(distributed.rank(), -distributed.rank()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    shrink()
    place = Path(sys.argv[1])
    if sys.argv[2:] == ["killed"]:
        killed(place)
        raise AssertionError("it was not ended")
    with distributed.together():
        torch.save(everything(place), place / f"{distributed.world()}-{distributed.rank()}.pt")
