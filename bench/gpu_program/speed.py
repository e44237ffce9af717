"""Images a second and the share of the peak, the loop beside the bare network; and where the time of a step goes."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu import compare, products_a_second, stages
from bench.gpu_program.context import Context
from crlf.recipe import RECIPES, Recipe
from crlf.runtime.devices import wait_for
from crlf.training.compile import KERNELS, require_compilable

LEAST_OF_BARE = 0.9  # the loop's speed beside the bare network's; below, something waits
MOST_FOR_VIEWS = 0.05  # of a step
COMPILING = 25.0  # seconds that compiling may take: with fewer left it is not begun
VIEWS = RECIPES["speedrun-knn90"].views
RECORD = "resnet18"  # the encoder of the record
LARGEST = 24  # rows of the profiler's table


def measure(c: Context) -> None:
    peak = products_a_second(c.device, c.sizes.matrix)
    first, *others = sorted(c.sizes.encoders, key=lambda name: name != RECORD)
    least, *larger = c.sizes.batches
    for mode in ("graphs", "none", "all"):  # the record's own step: the next part takes the fastest
        compiling(c, first, least, mode, peak)
    for mode in ("graphs", "none"):
        for batch in (least, *larger):
            for encoder in others if batch == least else (first, *others):
                loop(c, encoder, batch, mode, peak)
    for encoder in c.sizes.encoders:
        step_by_stage(c, encoder, least)
    profiled(c, first)
    for encoder, mode in (*((name, "all") for name in others), (first, "kernels")):
        compiling(c, encoder, least, mode, peak)


def compiling(c: Context, encoder: str, batch: int, mode: str, peak: float) -> None:
    """`loop`, where there is time to compile."""
    if mode not in KERNELS or c.clock.left() > (COMPILING if c.device.type == "cuda" else 0):
        loop(c, encoder, batch, mode, peak)


def recipe_of(c: Context, encoder: str, batch: int, mode: str) -> Recipe:
    base = RECIPES["speedrun-knn90"]
    precision = "bf16" if c.device.type == "cuda" else "auto"
    return dataclasses.replace(base, encoder=encoder, batch_size=batch, epochs=1, compile=mode, precision=precision)


def loop(c: Context, encoder: str, batch: int, mode: str, peak: float) -> None:
    """A row for the loop and one for the bare network; with half of the batch where the memory is too small."""
    if c.clock.left() < 3:
        return
    try:
        if c.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(c.device)
        require_compilable(recipe_of(c, encoder, batch, mode), c.device)
        rows = compare(recipe_of(c, encoder, batch, mode), c.device, c.sizes.steps, c.sizes.rounds, peak)
    except torch.OutOfMemoryError:
        c.emit(
            {
                "table": "loop",
                "encoder": encoder,
                "compile": mode,
                "batch": batch,
                "what": "out of memory",
                "images_a_second": 0.0,
            }
        )
        torch.cuda.empty_cache()
        if batch >= 64:
            loop(c, encoder, batch // 2, mode, peak)
        return
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        c.emit({"table": "failed", "encoder": encoder, "compile": mode, "batch": batch, "error": said})
        return
    for row in rows:
        named = {
            "table": "loop",
            "encoder": encoder,
            "compile": mode,
            "views": VIEWS,
            **{k: v for k, v in row.items() if k != "device"},
        }
        if c.device.type == "cuda":
            named["peak_GB"] = torch.cuda.max_memory_allocated(c.device) / 1e9
        if row["what"] == "CRLF's loop" and 1 / row["of_bare"] < LEAST_OF_BARE:
            what = f"the loop runs at {1 / row['of_bare']:.2f} of the bare network"
            named["surprise"] = f"{encoder}, batch {batch}, compile {mode}: {what}"
        c.emit(named)


def step_by_stage(c: Context, encoder: str, batch: int) -> None:
    """Milliseconds of each stage of a step, the device waited for after each."""
    try:
        found = stages(recipe_of(c, encoder, batch, "none"), c.device, c.sizes.steps)
    except Exception as error:
        traceback.print_exc()
        c.emit(
            {
                "table": "failed",
                "encoder": encoder,
                "batch": batch,
                "error": f"{type(error).__name__}: {str(error)[:200]}",
            }
        )
        return
    row: dict[str, Any] = {"table": "stages", "encoder": encoder, "batch": batch, **found}
    share = found["views_ms"] / sum(found.values())
    if share > MOST_FOR_VIEWS:
        row["surprise"] = f"{encoder}, batch {batch}: views take {share:.1%} of a step"
    c.emit(row)


def profiled(c: Context, encoder: str) -> None:
    """torch.profiler's table of three steps."""
    if c.clock.left() < 5:
        return
    recipe = recipe_of(c, encoder, c.sizes.batches[0], "none")
    cuda = c.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
    stages(recipe, c.device, 2)  # warm
    with profile(activities=activities) as found:
        stages(recipe, c.device, 3)
        wait_for(c.device)
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=key, row_limit=LARGEST, max_name_column_width=60)
    c.emit({"table": "profile", "text": f"\n{encoder}\n{table}"})
