"""The record: 90.0 % kNN (k = 10, cosine) on CIFAR-10 as quickly as possible, with an early look that cuts a lost run.

The look votes among training images, 5,000 of them asked about; the test images are used once, at the end.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crlf
from bench.gpu_program import compact, knn
from bench.gpu_program.context import Context
from bench.gpu_program.factors import changed
from crlf.data import ImageSet, load_for_pretraining
from crlf.metrics.knn import HEADLINE, knn_predict
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import ENCODER, claim
from crlf.training.loop import train
from crlf.training.state import State

GOAL = 90.0  # % kNN
LOOKS = 10  # in a run
FLOORS = {0.3: 0.70, 0.5: 0.78, 0.75: 0.84}  # after this share of a run, kNN among training images must be above
ASKED = 5000
WEIGHTS = "encoder-{}"  # what is brought back of a seed, in float16


class Cut(Exception):
    """The run cannot reach the goal."""


class Look:
    """kNN among training images, now and then, on the device; a row each, and the end of a run that is lost.

    Args:
        share: of the run that is done, from the seconds of training.
    """

    def __init__(self, c: Context, recipe: Recipe, data: ImageSet, seed: int, state: State):
        self.c, self.recipe, self.seed, self.state = c, recipe, seed, state
        assert data.labels is not None
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self.images = data.images[order].to(c.device)
        self.labels = data.labels[order].to(c.device)
        self.asked = min(ASKED, len(data) // 4)
        self.next, self.seconds = 1 / LOOKS, 0.0

    def look(self, encoder: nn.Module, seconds: float, step: int = 0, progress: float | None = None) -> dict[str, Any]:
        """As `crlf.training.knn_curve.KnnCurve.look`."""
        share = self.state.share
        if share < self.next:
            return {}
        self.next, start = share + 1 / LOOKS, time.perf_counter()
        found = self.accuracy(encoder)
        self.seconds += time.perf_counter() - start
        loss = self.state.losses[: self.state.step % len(self.state.losses) or None].mean().item()
        row = {"seed": self.seed, "share": share, "train_seconds": seconds, "loss": loss, "knn_train_%": 100 * found}
        row["weight_decay"] = self.recipe.optim.weight_decay
        self.c.emit({"table": "curve", **row})
        for floor, least in FLOORS.items():
            if self.c.sizes.data == "cifar10" and floor <= share < floor + 1.5 / LOOKS and found < least:
                where = f"after {share:.0%} of the run, below {100 * least:.0f} %"
                raise Cut(f"kNN among training images is {100 * found:.1f} % {where}")
        if share < 1 and self.c.clock.left() < self.c.sizes.ending / 5:
            raise Cut("no time is left")
        return {"knn_accuracy": found}

    def accuracy(self, encoder: nn.Module) -> float:
        rows: Tensor = knn.embed(encoder, self.images, self.recipe.normalisation)
        n = self.asked
        return knn.accuracy(rows[n:], self.labels[n:], rows[:n], self.labels[:n])


def measure(c: Context) -> None:
    for done, seed in enumerate(c.seeds):
        budget = c.clock.left() / (len(c.seeds) - done)
        try:
            c.emit({"table": "result", "seed": seed, **attempt(c, seed, budget)})
        except Cut as error:
            c.emit({"table": "result", "seed": seed, "cut": str(error)})
        except torch.OutOfMemoryError as error:
            traceback.print_exc()
            c.emit({"table": "result", "seed": seed, "cut": f"out of memory: {str(error)[:200]}"})


def attempt(c: Context, seed: int, budget: float) -> dict[str, Any]:
    """Train, embed and score one seed within so many seconds."""
    began = time.perf_counter()
    recipe = planned(c, seed, budget)
    data = load_for_pretraining(recipe.data, None, recipe.images, c.sizes.subset)
    recipe = recipe.resolved(data)
    state = State(recipe, data, c.device)
    with tempfile.TemporaryDirectory(dir=c.state) as folder:
        run = claim(folder, recipe.to_dict(), resume=False, overwrite=False)
        look = Look(c, recipe, data, seed, state)
        try:
            train(run, recipe, data, state, began, "none", look)  # type: ignore[arg-type]
            whole = time.perf_counter() - began
            crlf.embed(run, device=c.device.type)
            scores = run.scores
            accuracy = tested(Path(folder))
            weights = {name: value.half() for name, value in run.tensors(ENCODER).items()}
            compact.write(weights, c.out, WEIGHTS.format(seed))
        finally:
            run.release()
    kept = ("epochs", "train_seconds", "first_step_seconds", "images_per_second", "pflop", "precision")
    return {
        "knn_%": 100 * accuracy,
        "reached": 100 * accuracy >= GOAL,
        "compile": recipe.compile,
        **{name: scores[name] for name in kept if name in scores},
        "look_seconds": look.seconds,
        "whole_seconds": whole,
        "protocol": f"kNN, k = {HEADLINE}, cosine, {scores['protocol']['embedding']}",
    }


def planned(c: Context, seed: int, budget: float) -> Recipe:
    """The recipe, in as many epochs as it names; by the clock where these do not fit in the seconds."""
    mode = c.fastest("resnet18", "graphs" if c.device.type == "cuda" else "none")
    recipe = dataclasses.replace(
        RECIPES["speedrun-knn90"], seed=seed, compile=mode, data=c.sizes.data, subset=c.sizes.subset
    )
    recipe = dataclasses.replace(changed(recipe, c.settings), **c.sizes.record)
    if c.device.type == "cpu":
        recipe = dataclasses.replace(recipe, compile="none")
    speed = c.speed("resnet18")
    needed = recipe.epochs * 50_000 * recipe.views / speed if speed else 0.0
    room = budget - c.sizes.ending if c.device.type == "cuda" else budget / 2
    if needed > room:
        recipe = dataclasses.replace(recipe, minutes=room / 60)
    return recipe


def tested(folder: Path) -> float:
    """kNN accuracy on the test images, of a run's embeddings."""
    run = crlf.Run(folder)
    train_emb, train_lbl, test_emb, test_lbl = (
        run.array(f"{s}_{what}.npy") for s in ("train", "test") for what in ("emb", "lbl")
    )
    return float((knn_predict(train_emb, train_lbl, test_emb, HEADLINE) == test_lbl).mean())


def summary(rows: list[dict[str, Any]]) -> str:
    """What a reader wants to know of the results: how many seeds reached it, in what time."""
    reached = [row for row in rows if row.get("reached")]
    if not reached:
        return f"{GOAL} % kNN: not reached by {len(rows)} seeds"
    seconds = statistics.mean(row["train_seconds"] for row in reached)
    return f"{GOAL} % kNN reached by {len(reached)} of {len(rows)} seeds, in {seconds:.0f} s of training"
