"""One epoch of the default recipe: does it train here, and to the same loss when it is replayed as graphs?"""

from __future__ import annotations

import dataclasses
import tempfile
import traceback
from typing import Any

import crlf
from bench.gpu_program import knn
from bench.gpu_program.context import Context
from crlf.data import load
from crlf.embedding.embed import load_encoder
from crlf.recipe import RECIPES

ALIKE = 0.02  # of the loss: two ways that differ by more do not compute the same


def measure(c: Context) -> None:
    losses = {}
    for mode in ("none", "graphs"):
        try:
            row = one_epoch(c, mode)
        except Exception as error:  # the next way may work
            traceback.print_exc()
            c.emit({"compile": mode, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
            continue
        losses[mode] = row["loss"]
        if abs(row["loss"] / losses.get("none", row["loss"]) - 1) > ALIKE:
            row["surprise"] = f"the loss with compile {mode} is {row['loss']:.4f}, without {losses['none']:.4f}"
        c.emit(row)


def one_epoch(c: Context, mode: str) -> dict[str, Any]:
    recipe = dataclasses.replace(
        RECIPES["default"], epochs=1, data=c.sizes.data, subset=c.sizes.subset, compile=mode, **c.sizes.smoke
    )
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe, out=folder, device=c.device.type)
        scores, normalisation = run.scores, run.recipe.normalisation
        train, test = load(recipe.data, None, recipe.images, recipe.subset)
        frozen = load_encoder(run, recipe, train.images.shape[1:]).to(c.device)
    rows = [knn.embed(frozen, part.decoded.to(c.device), normalisation) for part in (train, test)]
    assert train.labels is not None and test.labels is not None
    accuracy = knn.accuracy(rows[0], train.labels.to(c.device), rows[1], test.labels.to(c.device))
    kept = ("loss", "train_seconds", "images_per_second", "precision", "device")
    return {"compile": mode, **{name: scores[name] for name in kept}, "knn_%": 100 * accuracy}
