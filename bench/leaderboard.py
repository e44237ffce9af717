"""The leaderboard of CIFAR-10 as a table: our own records, rows that `bench.entry` added, and what others published."""

from __future__ import annotations

import functools
import html
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.published import PUBLISHED, Published
from bench.timing import mean_and_spread
from crlf import encoders
from crlf.augmentation import view_size
from crlf.methods import METHODS
from crlf.methods.base import training_flops
from crlf.recipe import RECIPES, Recipe

NAME = "leaderboard"
IMAGES, SIDE = 50_000, 32
FIGURES = {
    "linear": "linear_accuracy",
    "linear, plain": "plain_linear_accuracy",
    "kNN": "knn_accuracy",
    "kNN, plain": "plain_knn_accuracy",
}
COLUMNS = ("method, encoder", "PFLOP", *FIGURES, "minutes", "epochs, views", "seeds", "from")
OURS = {"cifar10": "default", "cifar10-1": "default", "cifar10-seed": "seed"}  # records and their recipes
GPU = "speedrun-knn90"
OWN = (
    "`crlf probe`: logistic regression, C chosen on held-out training images; kNN with k = 10, cosine. Measured by "
    "CRLF. The runs on a GPU have the mirror image, but no regions"
)
ENCODERS = {"cnn": "light CNN", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}


def table(records: Path) -> str:
    """All rows as Markdown, those with the fewest operations first; then those without a count; then the protocols."""
    rows = [*map(as_text, ours(records)), *map(published, PUBLISHED)]
    rows.sort(key=lambda row: (row["invalid"] != "", row["operations"] or float("inf"), row["rank"]))
    notes = {protocol: number for number, protocol in enumerate(dict.fromkeys(row["protocol"] for row in rows), 1)}
    for row in rows:
        row["from"] += f" ({notes[row['protocol']]})"
    lines = [COLUMNS, ("---",) * len(COLUMNS), *([row[name] for name in COLUMNS] for row in rows)]
    told = [f"{number}. {protocol}" for protocol, number in notes.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", "Protocols:", "", *told])


def ours(records: Path) -> list[dict[str, Any]]:
    """Rows with lists over the seeds, from the records of CRLF's own measurements and from `bench.entry`."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()] if records.exists() else []
    latest = {record["bench"]: record for record in lines}
    rows = [gathered(latest[name], RECIPES[recipe]) for name, recipe in OURS.items() if name in latest]
    for record in lines:
        if record["bench"] == NAME:
            rows += [{**row, "source": record["commit"]} for row in record["rows"]]
        if record["bench"] == "gpu-program record":
            rows += [of_gpu(row, record) for row in record["rows"] if is_whole(row)]
    return rows


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether the GPU program trained for as long as its recipe says."""
    return row.get("table") == "result" and round(row.get("epochs", 0)) == RECIPES[GPU].epochs


def of_gpu(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    recipe = RECIPES[GPU]
    return {
        "who": f"CRLF, `--recipe {GPU}`",
        "method": METHODS[recipe.method].title,
        "encoder": recipe.encoder,
        "epochs": [row["epochs"]],
        "views_seen": [row["epochs"] * IMAGES * recipe.views],
        "pflop": [row["pflop"]],
        "train_seconds": [row["train_seconds"]],
        "knn_accuracy": [row["knn_%"] / 100],
        "seeds": [row["seed"]],
        "hardware": record["device"],
        "source": record["commit"],
    }


def gathered(record: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A record of `bench cifar10`, one row a seed, as one row."""
    rows = record["rows"]
    flags = rows[0].get("flags", "none")
    row: dict[str, Any] = {
        "who": "CRLF" + (f", `{flags}`" if flags != "none" else ""),
        "method": METHODS[recipe.method].title,
        "encoder": recipe.encoder,
        "hardware": rows[0]["device"],
        "source": record["commit"],
        "seeds": [row["seed"] for row in rows],
    }
    keys = ("epochs", "views_seen", "pflop", "train_seconds", *FIGURES.values())
    row |= {key: [one[key] for one in rows] for key in keys if key in rows[0]}
    plain = encoders.EmbeddingSettings(regions=1, mirror=False)
    if recipe.embedding == plain and "plain_linear_accuracy" not in row:  # the run's own readout is the plain one
        row |= {key: row.pop(other) for key, other in (("plain_linear_accuracy", "linear_accuracy"),) if other in row}
        row |= {key: row.pop(other) for key, other in (("plain_knn_accuracy", "knn_accuracy"),) if other in row}
    return row


def as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row of ours."""
    operations = statistics.mean(row["pflop"])
    who = html.escape(row["who"]).replace("|", "/")
    return {
        "method, encoder": f"**{row['method']}, {ENCODERS.get(row['encoder'], row['encoder'])}**: {who}",
        "PFLOP": f"{operations:.3g}",
        **{name: percent(row[key]) if key in row else "" for name, key in FIGURES.items()},
        "minutes": f"{statistics.mean(row['train_seconds']) / 60:.3g}, {row['hardware']}",
        "epochs, views": length(statistics.mean(row["epochs"]), statistics.mean(row["views_seen"])),
        "seeds": str(len(row["seeds"])),
        "from": f"commit {row['source']}",
        "protocol": OWN,
        "operations": operations,
        "rank": 0.0,
        "invalid": "",
    }


def length(epochs: float, views: float) -> str:
    return f"{epochs:.0f}, {views / 1e6:.3g} M" if views else f"{epochs:.0f}"


def percent(values: Sequence[float]) -> str:
    return mean_and_spread([100 * value for value in values])


def published(row: Published) -> dict[str, Any]:
    """The cells of a result of others; operations are counted from our network of the same kind."""
    views = row.epochs * IMAGES * row.views
    operations = views * flops(row.like) / 1e15 if row.like and views else None
    name = ", ".join(filter(None, (row.method, row.encoder)))
    return {
        "method, encoder": f"*Invalid*: {name}" if row.invalid else name,
        "PFLOP": f"about {operations:.3g}" if operations else "",
        **{name: row.figures.get(name, "") for name in FIGURES},
        "minutes": f"{row.minutes:.3g}, {row.hardware}" if row.minutes else row.hardware,
        "epochs, views": length(row.epochs, views),
        "seeds": row.seeds,
        "from": f"[{row.who}]({row.source})" if row.source else row.who,
        "protocol": row.protocol + (f". **Invalid: {row.invalid}**" if row.invalid else ""),
        "operations": operations,
        "rank": float(row.epochs),
        "invalid": row.invalid,
    }


@functools.cache
def flops(name: str) -> float:
    """Floating-point operations of a view in training, by the name of a recipe."""
    recipe = RECIPES[name]
    side = view_size(SIDE, recipe.augmentation)
    with torch.random.fork_rng(devices=[]):
        method = METHODS[recipe.method](encoders.build(recipe.encoder, 3, SIDE), recipe.head)
    return training_flops(method, recipe.views, 3, side, side)
