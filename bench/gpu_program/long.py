"""The longest run: 94 % linear with a ResNet-18. It stops when its time is over, and goes on at the next chance."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import crlf
from bench.gpu_program import compact
from bench.gpu_program.context import Context
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import CHECKPOINT, ENCODER
from crlf.runtime.interrupts import Interrupted

ENDING = 20.0  # seconds for the checkpoint and what is brought back
SCORING = 60.0  # seconds for embedding and the linear probe of a run that is complete


def measure(c: Context) -> None:
    recipe, run_folder = planned(c), c.state / "long"
    source = begin(c, recipe, run_folder)
    room = c.clock.left() - (ENDING if c.device.type == "cuda" else 3.0)
    if room <= 0:
        c.emit({"table": "run", "note": "no time was left"})
        return
    timer = threading.Timer(room, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    try:
        crlf.pretrain(recipe, out=run_folder, device=c.device.type, resume=source != "new", overwrite=source == "new")
        ended = "complete"
    except Interrupted as error:
        ended = str(error)
    finally:
        timer.cancel()
    rows = crlf.Run(run_folder).log()
    last = rows[-1] if rows else {}
    names = ("epoch", "loss", "seconds", "images_per_second", "knn_accuracy")
    kept: dict[str, Any] = {k: last[k] for k in names if k in last}
    c.emit({"table": "run", "began": source, "this_call_seconds": time.monotonic() - began, "ended": ended, **kept})
    for row in rows:
        if "knn_accuracy" in row:
            c.emit(
                {"table": "curve", "epoch": row["epoch"], "loss": row["loss"], "knn_train_%": 100 * row["knn_accuracy"]}
            )
    if (run_folder / ENCODER).is_file():
        score(c, run_folder)
    else:
        compact.pack(run_folder / CHECKPOINT, c.out)


def planned(c: Context) -> Recipe:
    mode = c.fastest("resnet18", "graphs" if c.device.type == "cuda" else "none")
    recipe = dataclasses.replace(
        RECIPES["r18-best"], compile=mode, data=c.sizes.data, subset=c.sizes.subset, **c.sizes.long
    )
    return dataclasses.replace(recipe, compile="none") if c.device.type == "cpu" else recipe


def begin(c: Context, recipe: Recipe, folder: Path) -> str:
    """Put the checkpoint that is furthest into the run's folder; say where it came from."""
    if (folder / CHECKPOINT).is_file():
        return "this machine's checkpoint"
    if c.brought and compact.there(c.brought):
        compact.unpack(c.brought, recipe, folder)
        return "the compact checkpoint of an earlier call"
    return "new"


def score(c: Context, folder: Path) -> None:
    """Linear and kNN accuracy of the complete run."""
    start = time.monotonic()
    crlf.embed(folder, device=c.device.type)
    scores: dict[str, Any] = crlf.probe(folder)
    kept = ("linear_accuracy", "knn_accuracy", "epochs", "train_seconds", "pflop", "views_seen")
    c.emit(
        {"table": "result", **{k: scores[k] for k in kept if k in scores}, "scoring_seconds": time.monotonic() - start}
    )
