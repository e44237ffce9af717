"""What each choice of the defaults for photographs is worth, on sets that nothing else is reported of.

    python -m bench photos-ablation --changes "base; batch_size=64; augmentation.crop_min=0.08 views=2"

A change is settings of recipe.json in place of those of `BASE`, or one of `OWN`. Every run does the same work, counted
in products (FLOP), so that a machine that others use too says the same. A row is measured once, as in `bench photos`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.photos import protocol, results
from bench.photos.contestants import nested
from bench.photos.packages import home
from bench.photos.sets import DEVELOPMENT, images
from crlf import encoders
from crlf.augmentation import Views, view_size
from crlf.data import ImageSet
from crlf.data.loader import batch_rows
from crlf.embedding.embed import embed_images
from crlf.encoders import CNN, ENCODERS
from crlf.evaluation.cross_validation import FOLDS, folds_of, same
from crlf.evaluation.logistic_regression import fit_linear
from crlf.optim import rates, set_rates
from crlf.recipe import Recipe
from crlf.runtime.allocator import keep_freed_memory
from crlf.runtime.devices import one_thread
from crlf.text import say
from crlf.training.loop import Step, stream_of
from crlf.training.state import State

ROWS = Path(__file__).parent.parent / "photos-ablation-rows.jsonl"
KEPT = home() / "ablation"
BASE = "base"
WORK = 3.0  # TFLOP of a run, backward passes with it
SIZE = {"foods": 64, "cifar10-dev": 32}  # pixels, where a change names none
C = 0.1  # of the linear probe
OWN: dict[str, Any] = {"ema": 0, "grow": 0, "embed": 0, "read": 0, "after": ""}
READING = ("embedding.", "embed=", "read=", "after=")  # what changes nothing in training begins so


def wide(channels: int, size: int, regions: int) -> nn.Module:
    return CNN(channels, regions, widths=(48, 96, 192, 384))


def five(channels: int, size: int, regions: int) -> nn.Module:
    return CNN(channels, regions, widths=(32, 64, 128, 256, 512))


def five_slim(channels: int, size: int, regions: int) -> nn.Module:
    return CNN(channels, regions, widths=(16, 32, 64, 128, 256))


def strided(channels: int, size: int, regions: int) -> nn.Module:
    """The first stage is a convolution of stride 4: a quarter of the products, at the same size."""
    network = CNN(channels, regions, widths=(32, 64, 128, 256))
    _, _, norm, activation = network.stages[0].children()
    network.stages[0] = nn.Sequential(nn.Conv2d(channels, 32, 7, 4, 3, bias=False), norm, activation)
    return network


NETWORKS = {"wide": wide, "five": five, "five-slim": five_slim, "strided": strided}
ENCODERS.update(NETWORKS)


def train(recipe: Recipe, data: ImageSet, work: float, own: dict[str, float]) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder after so much work, and what it took."""
    device = torch.device("cpu")
    state = State(recipe, data, device)
    views, method = Views(recipe.augmentation, recipe.normalisation), state.method.train()
    step = Step(recipe, method, state.optimizers, views, device)
    steps = max(1, round(work * 1e12 / (3 * flop(recipe, data) * recipe.batch_size * recipe.views)))
    average = copy.deepcopy(method.encoder)
    start = time.perf_counter()
    for number in range(steps):
        state.step = number
        share = (number + 0.5) / steps
        if own["grow"]:
            small = recipe.augmentation.resolution * (own["grow"] if share < 0.5 else 1.0)
            views.settings = replace(recipe.augmentation, resolution=small)
        rows = batch_rows(number, len(data), recipe.batch_size, recipe.seed)
        numbers = views.numbers(recipe.batch_size, recipe.views, stream_of(recipe, state))
        set_rates(state.optimizers, **rates(recipe.optim, share))
        loss, _ = step(data.images[rows], numbers, None)
        method.after_step((number + 1) / steps)
        if own["ema"]:
            with torch.no_grad():
                now = method.encoder.state_dict().values()
                for mean, value in zip(average.state_dict().values(), now, strict=True):
                    mean.lerp_(value, 1 - own["ema"]) if mean.is_floating_point() else mean.copy_(value)
    seconds = time.perf_counter() - start
    about = {"steps": steps, "seconds": round(seconds, 1), "loss": round(float(loss), 3)}
    return average if own["ema"] else method.encoder, about


def flop(recipe: Recipe, data: ImageSet) -> float:
    """Of the forward pass of one view."""
    _, channels, *sides = data.images.shape
    height, width = (view_size(side, recipe.augmentation) for side in sides)
    with torch.device("meta"):
        network = encoders.build(recipe.encoder, channels, min(sides))
        with FlopCounterMode(display=False) as count:
            network.eval()(torch.zeros(1, channels, height, width))
    return float(count.get_total_flops())


def embedded(state: dict[str, Any], recipe: Recipe, name: str, size: int, stages: int) -> np.ndarray:
    """The embeddings of all photographs at a size, read in some way: float32 (N, D)."""
    network = encoders.build(recipe.encoder, 3, size, recipe.embedding.regions)
    network.load_state_dict(state)
    network.read = stages or network.read  # type: ignore[assignment]
    frozen = encoders.Frozen(network, recipe.embedding.mirror)
    return embed_images(frozen, images(name, size).pixels, recipe.normalisation, 50)


def whitened(emb: np.ndarray) -> np.ndarray:
    """float32 (N, D) -> (N, N): principal components, the larger ones scaled down to the smaller."""
    left, values, _ = np.linalg.svd(emb - emb.mean(axis=0), full_matrices=False)
    return (left * values / np.sqrt(values**2 + (values**2).mean())).astype(np.float32)


AFTER: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda emb: emb,
    "centred": lambda emb: emb - emb.mean(axis=0),
    "standardised": lambda emb: (emb - emb.mean(axis=0)) / (emb.std(axis=0) + 1e-6),
    "whitened": whitened,
}


def measure(name: str, change: str, seed: int, work: float, keep: Path) -> dict[str, Any]:
    """The row of a change."""
    words = [] if change == BASE else change.split()
    reading = [word for word in words if word.startswith(READING)]
    training = [word for word in words if word not in reading]
    own = OWN | {key: value for key, value in nested(words).items() if key in OWN}
    settings = nested([word for word in words if word.partition("=")[0] not in OWN])
    size = settings.pop("images", {}).get("image_size", SIZE[name])
    shown = images(name, size)
    data = ImageSet(shown.pixels, None, (), shown.names)
    recipe = Recipe.from_dict({"data": "held-out/", "seed": seed, **settings}).resolved(data).for_images(len(data))
    kept = keep / f"{name}, {' '.join(training) or BASE}, {seed}, {work}.pt"
    if not kept.exists():
        encoder, about = train(recipe, data, work, own)
        keep.mkdir(parents=True, exist_ok=True)
        torch.save((encoder.state_dict(), about), kept)
    state, about = torch.load(kept)
    emb = embedded(state, recipe, name, own["embed"] or size, own["read"])
    return row(name, change, seed, work, size, AFTER[own["after"]](emb), shown.labels, about)


def row(
    name: str, change: str, seed: int, work: float, size: int, emb: np.ndarray, labels: np.ndarray, about: Any
) -> Any:
    correct = probes(emb, labels, seed)
    means = {key: round(results.mean(getattr(correct, key)).points, 2) for key in results.PROBES}
    average = round(sum(means.values()) / len(means), 2)
    line = {"set": name, "change": change, "seed": seed, "work": work, "px": size, "dim": emb.shape[1], **about}
    line |= {**means, "mean": average}
    say(f"{name}, {change}, seed {seed}: {means} mean {average}; {about}")
    return line


def probes(emb: np.ndarray, labels: np.ndarray, seed: int) -> protocol.Correct:
    """Those of `protocol`, but for a linear probe of a fixed C: to choose it takes as long as to train."""
    with one_thread():
        folds, right = folds_of(labels, same(emb), seed), np.zeros(len(labels))
        for fold in range(FOLDS):
            here = folds == fold
            right[here] = fit_linear(emb[~here], labels[~here], C, tolerance=1e-5).predict(emb[here]) == labels[here]
        return protocol.Correct(right, protocol.leave_one_out(emb, labels), protocol.few_labels(emb, labels, seed))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench photos-ablation", description=__doc__)
    parser.add_argument("--sets", default=",".join(DEVELOPMENT))
    parser.add_argument("--changes", default=BASE, help="with semicolons between")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work", type=float, default=WORK, help="TFLOP")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--keep", type=Path, default=KEPT, help="a folder for the trained encoders")
    asked = parser.parse_args(argv)
    keep_freed_memory()
    done = {(one["set"], one["change"], one["seed"], one["work"]) for one in results.read(asked.rows)}
    for seed in map(int, asked.seeds.split(",")):
        for change in [one.strip() for one in asked.changes.split(";")]:
            for name in asked.sets.split(","):
                if (name, change, seed, asked.work) not in done:
                    results.append(asked.rows, measure(name, change, seed, asked.work, asked.keep))
    return 0
