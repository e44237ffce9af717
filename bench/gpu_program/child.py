"""What a part's process does first: it finds the device, the earlier results and the clock."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import torch

from bench.gpu_program.context import SIZES, Clock, Context, rows_in
from bench.gpu_program.program import Emit, Part
from crlf.runtime.allocator import keep_freed_memory
from crlf.runtime.devices import pick_device

SHARES: dict[str, float | None] = {
    "look": 20, "check": 60, "smoke": 20, "speed": 100, "record": 240, "factors": 400, "search": 60, "long": None,
}  # fmt: skip


def part(
    name: str,
    share: float | None,
    out: Path,
    state: Path,
    earlier: Path | None,
    device: str,
    sizes: str,
    seeds: tuple[int, ...],
    settings: dict[str, Any] | None = None,
) -> Part:
    """The part of this name, ready to be run."""
    return Part(name, share, functools.partial(work, name, out, state, earlier, device, sizes, seeds, settings))


def work(
    name: str,
    out: Path,
    state: Path,
    earlier: Path | None,
    device: str,
    sizes: str,
    seeds: tuple[int, ...],
    settings: dict[str, Any] | None,
    seconds: float,
    emit: Emit,
) -> None:
    clock = Clock(seconds)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # sizes stay the same for thousands of steps
    state.mkdir(parents=True, exist_ok=True)
    rows = [*(rows_in(earlier) if earlier else []), *rows_in(out)]
    context = Context(pick_device(device), SIZES[sizes], clock, state, out, earlier, seeds, settings or {}, emit, rows)
    importlib.import_module(f"bench.gpu_program.{name}").measure(context)
