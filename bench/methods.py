"""Every method side by side: the `cnn` encoder on CIFAR-10, the same minutes of training, on held-out training images.

Equal compute is equal time on one CPU: it counts targets, heads and the optimizer, which epochs or products do not. Two
views; three seeds; the test set is not touched; the probes are those of `python -m bench ablation`. Heads are the
methods' own but where one would be wider than 512: beside a network as small as this one most of the time would go into
it.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import crlf
from bench.ablation import accuracies, held_out
from bench.timing import mean_and_spread
from crlf.data import SOURCES
from crlf.methods import METHODS
from crlf.methods.base import TaughtMethod
from crlf.recipe import Recipe

MINUTES = 0.8  # of training: 12 methods and 3 seeds are then done in 40 minutes
SEEDS = (0, 1, 2)
WIDEST = 512
ALONE = tuple(name for name, kind in METHODS.items() if not issubclass(kind, TaughtMethod))  # who is taught knows more


def recipe(name: str, minutes: float, seed: int) -> Recipe:
    return Recipe(method=name, data="held-out", views=2, minutes=minutes, seed=seed, head=head(name))


def head(name: str) -> Any:
    """A method's settings with no layer wider than `WIDEST`."""
    own = METHODS[name].Settings()
    widths = ("hidden", "projection", "predictor", "bottleneck")
    narrow = {w: min(WIDEST, getattr(own, w)) for w in widths if hasattr(own, w)}
    return dataclasses.replace(own, **narrow)


def score(recipe: Recipe) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe, out=folder, device="cpu")
        scores = run.scores
        return {
            **accuracies(run, run.recipe),
            "train seconds": scores["train_seconds"],
            "epochs": scores["epochs"],
        }


def measure(
    minutes: float = MINUTES, seeds: Sequence[int] = SEEDS, names: Sequence[str] = ALONE
) -> list[dict[str, Any]]:
    """A row a method. Seeds are the outer loop, so that a machine whose speed drifts treats all methods alike."""
    SOURCES["held-out"] = held_out
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            runs[name].append(score(recipe(name, minutes, seed)))
    return [{"method": name, **summary(scores)} for name, scores in runs.items()]


def summary(scores: list[dict[str, float]]) -> dict[str, float | str]:
    """Of each number the mean over the seeds; of percentages the standard deviation too."""
    found: dict[str, float | str] = {"seeds": len(scores)}
    for key in scores[0]:
        values = [score[key] for score in scores]
        found[key] = mean_and_spread(values) if key.endswith("%") else statistics.mean(values)
    return found
