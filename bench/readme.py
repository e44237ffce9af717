"""The tables of the README and the docs, from the records and from the code: `python -m bench readme` writes them.

A test fails when they disagree.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from bench import leaderboard, plan, scaling
from bench.timing import mean_and_spread
from crlf.methods import METHODS
from crlf.recipe import RECIPES

ROOT = Path(__file__).parent.parent
README, RECIPE, METHODS_PAGE = ROOT / "README.md", ROOT / "docs" / "recipe.md", ROOT / "docs" / "methods.md"
FINETUNING, SCALING = ROOT / "docs" / "fine-tune.md", ROOT / "docs" / "scaling.md"
PHOTOGRAPHS = ROOT / "docs" / "photographs.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
LEADERBOARD = ROOT / "docs" / "leaderboard.md"
TRAINED, DISTIL = ROOT / "docs" / "trained-weights.md", ROOT / "docs" / "distil.md"
SPEEDRUN = ROOT / "docs" / "speedrun.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
RUNS = {
    "cifar10": "`python simclr_train.py`, 10 epochs",
    "cifar10-1": "`--epochs 1`",
    "cifar10-seed": "`--recipe seed`: the original project's settings (45.3 there)",
}

SHIPPED = ("linear_accuracy", "knn_accuracy")
PLAIN = ("plain_linear_accuracy", "plain_knn_accuracy")

GPU_TABLES = (  # their names on the page, the part, its table
    ("gpu-smoke", "smoke", ""),
    ("gpu-speed", "speed", "loop"),
    ("gpu-record", "record", "result"),
    ("gpu-factors-resnet18", "factors", "resnet18 effects"),
    ("gpu-factors-cnn", "factors", "cnn effects"),
    ("gpu-search", "search", "race"),
    ("gpu-long", "long", "result"),
)
SPEEDS = (
    *("throughput", "views", "step", "loading", "decode", "streaming"),
    *("loss-memory", "probes", "search", "memory", "newton-schulz"),
)


def latest(records: Path) -> dict[str, dict[str, Any]]:
    """The last record of each measurement."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    return {record["bench"]: record for record in map(json.loads, lines)}


def results(found: dict[str, dict[str, Any]], records: Path) -> str:
    """Accuracy and time of the one command, beside what needs no training; as shipped, and read plainly."""
    lines = ["| | linear probe | kNN | linear, plain | kNN, plain | training |", "|---|---|---|---|---|---|"]
    for name, command in RUNS.items():
        if name in found:
            rows = found[name]["rows"]
            minutes = f"{mean(rows, 'train_seconds') / 60:.1f} min"
            lines.append(f"| {command} | {' | '.join(spread(rows, key) for key in (*SHIPPED, *PLAIN))} | {minutes} |")
    first = found["cifar10"]["rows"] if "cifar10" in found else []
    for what, key in (("the same encoder, untrained", "untrained"), ("raw pixels", "pixels")):
        if any(f"{key}_linear_accuracy" in row for row in first):
            shown = (f"{key}_linear_accuracy", f"{key}_knn_accuracy", "", "")
            lines.append(f"| {what} | {' | '.join(spread(first, name) for name in shown)} | – |")
    used = [record for name, record in found.items() if name in RUNS]
    places: dict[str, set[str]] = {}
    for record in used:
        places.setdefault(f"{record['device']}, torch {record['torch']}", set()).add(record["commit"])
    where = [f"{place}, commit {', '.join(sorted(commits))}" for place, commits in sorted(places.items())]
    seeds = sorted({len(record["rows"]) for record in used})
    note = (
        "Percent of the CIFAR-10 test images, mean ± standard deviation "
        f"over {' or '.join(map(str, seeds))} seeds; chance 10. "
        "*As shipped*, an embedding joins the last three stages in 2 × 2 regions and averages image and mirror image. "
        "*Plain* is the last stage, averaged over the image."
    )
    return "\n".join([*lines, "", note, "On: " + "; ".join(where) + ".", on_a_gpu(found, records)])


def on_a_gpu(found: dict[str, dict[str, Any]], records: Path) -> str:
    """What the GPU program's first epoch and its best record say."""
    smoke = found.get("gpu-program smoke")
    epochs = [row for row in smoke["rows"] if "train_seconds" in row] if smoke else []
    runs = [
        (row, record["device"])
        for record in gpu_records(records, "record")
        for row in record["rows"]
        if "knn_%" in row and row.get("table") == "result"
    ]
    if not smoke or not epochs or not runs:
        return "On a GPU: not measured."
    fastest = min(epochs, key=lambda row: row["train_seconds"])
    best, device = max(runs, key=lambda run: run[0]["knn_%"])
    return (
        f"{smoke['device']}: an epoch in {fastest['train_seconds']:.1f} s (`--compile {fastest['compile']}`). "
        f"{device}: a ResNet-18 with {best['knn_%']:.1f} % kNN after {best['train_seconds'] / 60:.1f} min, one seed "
        "([the GPU records](docs/speedrun.md))."
    )


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Mean ± standard deviation of a fraction, in percent; a dash where it was not measured."""
    values = [100 * row[key] for row in rows if key in row]
    return mean_and_spread(values) if values else "–"


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def measurements(found: dict[str, dict[str, Any]]) -> str:
    """Speeds side by side, one table a measurement."""
    parts = []
    for name in SPEEDS:
        if name in found:
            record = found[name]
            parts += [
                f"`python -m bench {name}` ({record['device']}, torch {record['torch']}):",
                "",
                markdown(record["rows"]),
            ]
            parts.append("")
    return "\n".join(parts).strip()


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([text(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("_", " ")


def text(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def rows(found: dict[str, dict[str, Any]], name: str) -> str:
    """The table of one measurement."""
    return markdown(found[name]["rows"]) if name in found else "not measured"


def methods() -> str:
    """What each method's class says of it."""
    lines = ["| name | method | in half a sentence | needs | source |", "|---|---|---|---|---|"]
    for name, kind in METHODS.items():
        source, _, address = kind.paper.rpartition(", ")
        lines.append(f"| `{name}` | {kind.title} | {kind.gist} | {kind.needs} | [{source}]({address}) |")
    return "\n".join(lines)


def filled(page: str, name: str, table: str) -> str:
    """The page with a table between its markers `<!-- NAME -->` and `<!-- end -->`."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.S)


def speedrun(records: Path, found: dict[str, dict[str, Any]]) -> str:
    """The page of the GPU records: the plan, the launches, and what each part of the GPU program found."""
    page = filled(SPEEDRUN.read_text(encoding="utf-8"), "plan", markdown(plan.table(measured_on_a_gpu(records))))
    page = filled(page, "launches", rows(found, "launches"))
    for name, part, table in GPU_TABLES:
        page = filled(page, name, gpu_table(records, part, table))
    return page


def measured_on_a_gpu(records: Path) -> dict[str, str]:
    """Minutes and kNN of the record's runs that were as long as its recipe says, by the recipe's name."""
    name = "speedrun-knn90"
    rows = gpu_rows(records, "record", "result")
    runs = [row for row in rows if round(row.get("epochs", 0)) == RECIPES[name].epochs]
    return (
        {name: "; ".join(f"{row['train_seconds'] / 60:.2f} ({row['knn_%']:.1f} % kNN)" for row in runs)} if runs else {}
    )


def gpu_rows(records: Path, part: str, table: str) -> list[dict[str, Any]]:
    """One table of a part of the GPU program: the rows of all its records."""
    return [row for record in gpu_records(records, part) for row in record["rows"] if row.get("table", "") == table]


def gpu_records(records: Path, part: str) -> list[dict[str, Any]]:
    lines = map(json.loads, records.read_text(encoding="utf-8").splitlines()) if records.exists() else []
    return [record for record in lines if record["bench"] == f"gpu-program {part}"]


def gpu_table(records: Path, part: str, table: str) -> str:
    """The same as text, with where they were measured."""
    kept, found = gpu_records(records, part), gpu_rows(records, part, table)
    if not found:
        return "not measured"
    where = dict.fromkeys(f"{r['device']}, torch {r['torch']}, {r['date']}, commit {r['commit']}" for r in kept)
    protocols = dict.fromkeys(str(row["protocol"]) for row in found if "protocol" in row)  # a column would be too wide
    hidden = ("table", "surprise", "protocol")
    bare = [{name: value for name, value in row.items() if name not in hidden} for row in found]
    return "\n".join([markdown(bare), "", *(f"{line}." for line in (*protocols, *where))])


def pages(records: Path) -> dict[Path, str]:
    """Each page that holds tables, as it should be."""
    found = latest(records)
    plans, parts = map(markdown, scaling.tables())
    return {
        README: filled(README.read_text(encoding="utf-8"), "results", results(found, records)),
        BENCHMARKS: filled(BENCHMARKS.read_text(encoding="utf-8"), "measurements", measurements(found)),
        LEADERBOARD: filled(LEADERBOARD.read_text(encoding="utf-8"), "leaderboard", leaderboard.table(records)),
        RECIPE: filled(RECIPE.read_text(encoding="utf-8"), "ablation", rows(found, "ablation")),
        FINETUNING: filled(
            filled(FINETUNING.read_text(encoding="utf-8"), "finetuning", rows(found, "finetuning")),
            "few-labels",
            rows(found, "few-labels"),
        ),
        PHOTOGRAPHS: filled(
            filled(PHOTOGRAPHS.read_text(encoding="utf-8"), "ablation", rows(found, "photos-ablation")),
            "photos",
            texts(found, "photos"),
        ),
        TRAINED: filled(
            filled(TRAINED.read_text(encoding="utf-8"), "init-ablation", rows(found, "init-ablation")),
            "transfer",
            texts(found, "transfer"),
        ),
        DISTIL: filled(DISTIL.read_text(encoding="utf-8"), "losses", texts(found, "transfer", "losses")),
        SCALING: filled(
            filled(filled(SCALING.read_text(encoding="utf-8"), "plans", plans), "parts", parts),
            "shared-loss",
            rows(found, "shared-loss"),
        ),
        SPEEDRUN: speedrun(records, found),
        RELIABILITY: filled(
            filled(RELIABILITY.read_text(encoding="utf-8"), "soak", rows(found, "soak")),
            "short-runs",
            rows(found, "short-runs"),
        ),
        METHODS_PAGE: filled(
            filled(METHODS_PAGE.read_text(encoding="utf-8"), "table", methods()), "methods", rows(found, "methods")
        ),
    }


def texts(found: dict[str, dict[str, Any]], name: str, key: str = "text") -> str:
    """The tables that a record holds as text, and where they were measured."""
    if name not in found:
        return "not measured"
    record = found[name]
    where = f"{record['device']}, torch {record['torch']}, {record['date']}, commit {record['commit']}"
    return f"{record[key]}\n\n{where}."


def write(records: Path) -> None:
    for path, page in pages(records).items():
        path.write_text(page, encoding="utf-8")
