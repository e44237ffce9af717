"""A checkpoint small enough to be brought back: files of at most 15 MB, to go on from on another machine.

It holds the weights rounded to bf16, and what is not a weight as it is. It leaves out the optimizer's momentum, which
is made anew within some twenty steps, and the weights of a target, which begins again as what it follows. So the run
that goes on from it is not the same bit for bit.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crlf.data import load_for_pretraining
from crlf.methods.base import Target
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.run import Run, claim
from crlf.training.state import State

PIECE = 15_000_000  # bytes of a file
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms
LEAST = 100_000  # numbers in a tensor that is rounded


def pack(checkpoint: Path, out: Path) -> int:
    """Write the pieces of a run's checkpoint; the bytes of all."""
    values = torch.load(checkpoint, map_location="cpu", weights_only=True)
    values["optimizers"] = None
    values["method"] = {name: rounded(value) for name, value in values["method"].items() if not followed(name)}
    return write(values, out, "checkpoint")


def write(values: dict[str, Any], out: Path, name: str) -> int:
    """Write NAME-00.bin and the following pieces; the bytes of all."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    data = buffer.getbuffer()
    for old in pieces(out, name):
        old.unlink()
    for i, start in enumerate(range(0, len(data), PIECE)):
        (out / f"{name}-{i:02}.bin").write_bytes(data[start : start + PIECE])
    return len(data)


def pieces(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-[0-9][0-9].bin"))


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(io.BytesIO(b"".join(p.read_bytes() for p in pieces(folder, name))), weights_only=True)


def followed(name: str) -> bool:
    """Whether a tensor of a state dict is a target's weight, which follows another; its norms' statistics are kept."""
    return "target.networks." in name and name.rpartition(".")[2] not in STATISTICS


def rounded(value: Tensor) -> Tensor:
    return value.bfloat16() if value.is_floating_point() and value.numel() >= LEAST else value


def there(folder: Path) -> bool:
    return bool(pieces(folder, "checkpoint"))


def unpack(folder: Path, recipe: Recipe, run_folder: Path) -> Run:
    """A run folder whose checkpoint goes on where the pieces ended."""
    values = read(folder, "checkpoint")
    data = load_for_pretraining(recipe.data, None, recipe.images, recipe.subset)
    recipe = recipe.resolved(data)
    state = State(recipe, data, torch.device("cpu"))
    here = state.method.state_dict()
    restored = {name: value.to(here[name].dtype) for name, value in values["method"].items()}
    state.method.load_state_dict(here | restored)
    follow_at_once(state)
    for name in ("step", "seconds", "share", "epoch_losses"):
        setattr(state, name, values[name])
    state.losses.copy_(values["losses"])
    run = claim(run_folder, recipe.to_dict(), resume=False, overwrite=True)
    try:
        state.save(run)
    finally:
        run.release()
    assert checkpoints.kept(run)
    return run


def follow_at_once(state: State) -> None:
    """Let every target become what it follows, as at the start of a run."""
    targets = [module for module in state.method.modules() if isinstance(module, Target)]
    momenta = [(target.start, target.end) for target in targets]
    for target in targets:
        target.start = target.end = 0.0
    state.method.after_step(0.0)
    for target, (start, end) in zip(targets, momenta, strict=True):
        target.start, target.end = start, end
