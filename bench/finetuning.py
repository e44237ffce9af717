"""Fine-tuning with few and with many labels: a linear layer beside all weights, on held-out images of CIFAR-10.

One encoder, trained for an epoch without labels on 45,000 images; then classifiers from 10, 200 and 1,000 labels a
class, scored on the other 5,000. Labels, order and views are drawn anew for each seed; the test set is not touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import crlf
from bench.ablation import held_out
from bench.timing import mean_and_spread
from crlf.data import PUBLISHED, SOURCES
from crlf.recipe import Recipe

LABELS = (10, 200, 1000)  # a class
SEEDS = (0, 1, 2)
MODES: tuple[Literal["linear"], Literal["full"]] = ("linear", "full")


def measure(
    labels: Sequence[int] = LABELS, seeds: Sequence[int] = SEEDS, recipe: Recipe | None = None
) -> list[dict[str, Any]]:
    SOURCES["held-out"], PUBLISHED["held-out"] = held_out, PUBLISHED["cifar10"]
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe or Recipe(data="held-out", epochs=1), out=Path(folder) / "run", device="cpu")
        return [row(run, count, seeds) for count in labels]


def row(run: crlf.Run, count: int, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for seed in seeds:
            out = run.path / f"{mode}-{count}-{seed}"
            crlf.finetune(run, "held-out", mode=mode, labels_per_class=count, seed=seed, out=out, device="cpu")
            found[mode].append(json.loads((out / "scores.json").read_text(encoding="utf-8")))
    accuracies = {
        f"{name}_%": mean_and_spread([100 * scores["accuracy"] for scores in found[mode]])
        for mode, name in (("linear", "linear layer"), ("full", "all weights"))
    }
    return {"labels": 10 * count, **accuracies, "seeds": len(seeds)}
