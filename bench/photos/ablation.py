"""What each choice of the defaults for photographs is worth, on sets of which nothing else is reported.

    python -m bench photos-ablation --changes "base; batch_size=64; batch_size=64 augmentation.crop_min=0.08"

A change is settings of recipe.json in place of the defaults for photographs; or embed=PIXELS, read=STAGES or
after=centred, standardised or whitened, which change how a trained encoder is read. Every run does the same work,
counted in products (FLOP), so that a machine that others use too says the same as an idle one. A row is measured once,
as in `bench photos`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
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
from bench.timing import mean_and_spread
from crlf import encoders
from crlf.augmentation import Views, view_size
from crlf.data import ImageSet
from crlf.data.loader import batch_rows
from crlf.embedding.embed import embed_images
from crlf.evaluation.cross_validation import FOLDS, folds_of, same
from crlf.evaluation.logistic_regression import fit_linear
from crlf.methods.base import IndexedMethod
from crlf.optim import rates, set_rates
from crlf.recipe import Recipe, settled
from crlf.runtime.allocator import keep_freed_memory
from crlf.runtime.devices import one_thread
from crlf.text import say
from crlf.training.loop import Step, stream_of
from crlf.training.state import State
from crlf.training.teaching import teach, teacher_of
from crlf.training.weights.sources import Weights

ROWS = Path(__file__).parent.parent / "photos-ablation-rows.jsonl"
KEPT = home() / "ablation"
BASE = "base"
WORK = 3.0  # TFLOP of a run, backward passes with it
SIZE = {"foods": 64, "cifar10-dev": 32}  # pixels, where a change names none
C = 0.1  # of the linear probe
OWN: dict[str, Any] = {"embed": 0, "read": 0, "after": ""}
READING = ("embedding.", *(f"{name}=" for name in OWN))  # what changes nothing in training begins so


def train(
    recipe: Recipe, data: ImageSet, work: float, weights: Weights | None = None
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """An encoder before and after so much work, and what it took.

    Args:
        weights: what it starts from, if not from random weights.
    """
    device = torch.device("cpu")
    teacher = teacher_of(recipe, weights)
    features = teach(recipe, teacher, data, None, device) if teacher else None
    state = State(recipe, data, device, weights, features)
    before = copy.deepcopy(state.method.encoder)
    views, method = Views(recipe.augmentation, recipe.normalisation), state.method.train()
    step = Step(recipe, method, state.optimizers, views, device)
    steps = max(1, round(work * 1e12 / (3 * flop(recipe, data) * recipe.batch_size * recipe.views)))
    start, loss = time.perf_counter(), torch.zeros(())
    for state.step in range(steps):
        rows = batch_rows(state.step, len(data), recipe.batch_size, recipe.seed)
        numbers = views.numbers(recipe.batch_size, recipe.views, stream_of(recipe, state))
        set_rates(state.optimizers, **rates(recipe.optim, (state.step + 0.5) / steps, recipe.start.head_first))
        loss, _ = step(data.images[rows], numbers, rows if isinstance(method, IndexedMethod) else None)
        method.after_step((state.step + 1) / steps)
    seconds = round(time.perf_counter() - start, 1)
    return before, method.encoder, {"steps": steps, "seconds": seconds, "loss": round(float(loss), 3)}


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
    if stages:
        network.read = stages  # type: ignore[assignment]
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
    training = [word for word in words if not word.startswith(READING)]
    own = OWN | {key: value for key, value in nested(words).items() if key in OWN}
    settings = nested([word for word in words if word.partition("=")[0] not in OWN])
    size = settings.pop("images", {}).get("image_size", SIZE[name])
    shown = images(name, size)
    data = ImageSet(shown.pixels, None, (), shown.names)
    asked = {"data": "photographs/", "seed": seed, "images": {"image_size": size, "hold_out": -1.0}, **settings}
    recipe = settled(Recipe.from_dict(asked).for_images(len(data))).resolved(data)
    kept = keep / f"{name}, {' '.join(training) or BASE}, {seed}, {work}.pt"
    if not kept.exists():
        _, encoder, about = train(recipe, data, work)
        keep.mkdir(parents=True, exist_ok=True)
        torch.save((encoder.state_dict(), about), kept)
    state, about = torch.load(kept)
    emb = AFTER[own["after"]](embedded(state, recipe, name, own["embed"] or size, own["read"]))
    correct = probes(emb, shown.labels, seed)
    means = {key: round(results.mean(getattr(correct, key)).points, 2) for key in results.PROBES}
    say(f"{name}, {change}, seed {seed}: {means}; {about}")
    return {"set": name, "change": change, "seed": seed, "work": work, "px": size, **about, **means}


def probes(emb: np.ndarray, labels: np.ndarray, seed: int) -> protocol.Correct:
    """Those of `protocol`, but for a linear probe of a fixed C: to choose it takes as long as to train."""
    with one_thread():
        folds, right = folds_of(labels, same(emb), seed), np.zeros(len(labels))
        for fold in range(FOLDS):
            here = folds == fold
            right[here] = fit_linear(emb[~here], labels[~here], C, tolerance=1e-5).predict(emb[here]) == labels[here]
        return protocol.Correct(right, protocol.leave_one_out(emb, labels), protocol.few_labels(emb, labels, seed))


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set, work and change: the mean over the seeds, and their standard deviation where there are two
    or more."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["work"], row["change"]), []).append(row)
    found = []
    for name, work, change in sorted(groups, key=lambda group: (-len(group[0]), group[1], group[2] != BASE)):
        alike = groups[name, work, change]
        columns = {what: [row[key] for row in alike] for key, what in results.PROBES.items()}
        columns["mean"] = [sum(values) / len(values) for values in zip(*columns.values(), strict=True)]
        cells = {what: mean_and_spread(values) for what, values in columns.items()}
        found.append({"set": name, "TFLOP": work, "change": change, "steps": alike[0]["steps"], **cells})
    return found


def main(argv: Sequence[str]) -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench photos-ablation", description="What each choice for photographs is worth."
    )
    parser.add_argument("--sets", default=",".join(DEVELOPMENT))
    parser.add_argument("--changes", default="", help=f"with semicolons between; {BASE} is none")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work", type=float, default=WORK, help="TFLOP of a run")
    parser.add_argument("--rows", type=Path, default=ROWS, help="a file of JSON lines to go on from")
    parser.add_argument("--keep", type=Path, default=KEPT, help="a folder for the trained encoders")
    parser.add_argument("--record", action="store_true", help="append the table to bench/records.jsonl")
    asked = parser.parse_args(argv)
    keep_freed_memory()  # as the commands of crlf do
    done = {(row["set"], row["change"], row["seed"], row["work"]) for row in results.read(asked.rows)}
    for seed in map(int, asked.seeds.split(",")):
        for change in filter(None, (one.strip() for one in asked.changes.split(";"))):
            for name in asked.sets.split(","):
                if (name, change, seed, asked.work) not in done:
                    results.append(asked.rows, measure(name, change, seed, asked.work, asked.keep))
    rows = table(results.read(asked.rows))
    print(results.table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]) if rows else "no rows")
    if asked.record:
        record(rows)
    return 0


def record(rows: Sequence[dict[str, Any]]) -> None:
    """Append the table to the records."""
    from bench import __main__ as bench

    bench.keep("photos-ablation", list(rows))
