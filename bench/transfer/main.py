"""The command: `python -m bench transfer --sets foods,sky --seeds 0,1,2`.

Contestants, on the sets and by the probes of `python -m bench photos`. The model is EfficientNet-Lite0 with ImageNet's
weights (bench.photos.imagenet):

model SIZE         as it is, read by CRLF at SIZE pixels: `crlf pretrain PATH --init FILE --epochs 0`
crlf MINUTES       SimCLR from random weights, with CRLF's defaults
init MINUTES       SimCLR from the model, with the defaults of `--init`, at 128 px
again MINUTES      SimCLR for so many minutes, and then once more, by --init, from what came out
taught MINUTES     CRLF's default encoder, distilled from the model, which sees 128 px

each of the last four with settings of recipe.json behind it, such as optim.lr=0.0001. A row is measured once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import crlf
from bench import readme
from bench.photos import results
from bench.photos.contestants import Embedded, in_order, is_number, nested, trained
from bench.photos.imagenet import weights_file
from bench.photos.main import fill
from bench.photos.packages import home
from bench.photos.sets import REPORTED, folder_of, images, listing_of
from crlf.errors import InputError, unknown
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER
from crlf.runtime.allocator import keep_freed_memory

ROWS = Path(__file__).parent.parent / "transfer-rows.jsonl"
SIZE = 128  # pixels of the images that the model sees
ALL = (f"model {SIZE}", "crlf 3", "init 3", "again 3", "taught 3")
SETS = "foods,sky,things"
NETWORK = "timm:tf_efficientnet_lite0"
HELD = (("taught", "crlf"), ("init", "model"), ("init", "crlf"), ("again", "crlf"))  # what is held against what


def from_model(**settings: Any) -> dict[str, Any]:
    """Settings of recipe.json for an encoder with the model's weights."""
    start = {"init": str(weights_file()), "match": "order", **settings.pop("start", {})}
    return {"encoder": NETWORK, "images": {"image_size": SIZE}, **settings, "start": start}


def as_it_is(name: str, size: int = SIZE) -> crlf.Run:
    """A run of a set of which nothing is trained; it is made once, and teaches."""
    run = crlf.Run(home() / "transfer" / f"{name}, {size}")
    if not run.file(ENCODER).is_file() or "train_emb.npy" not in run.held():
        settings = from_model(data=str(listing_of(folder_of(name))), epochs=0, images={"image_size": size})
        crlf.pretrain(Recipe.from_dict(settings), out=run.path, device="cpu", overwrite=run.path.exists())
        crlf.embed(run, device="cpu")
    return run


def given(name: str, seed: int, size: int) -> Embedded:
    run, shown = as_it_is(name, size), images(name, 16)
    order = in_order(run.ids("train") or [], name, shown)
    return Embedded(np.asarray(run.array("train_emb.npy"))[order], shown.labels, {"image_size": size})


def gone_on(name: str, seed: int, minutes: float, settings: Sequence[str]) -> Embedded:
    return trained(name, seed, minutes, settings, from_model(**nested(settings)))


def again(name: str, seed: int, minutes: float, settings: Sequence[str]) -> Embedded:
    listed = str(listing_of(folder_of(name)))
    with tempfile.TemporaryDirectory() as folder:
        first = crlf.pretrain(Recipe(data=listed, minutes=minutes, seed=seed), out=Path(folder) / "run", device="cpu")
        asked = nested(settings)
        start = {"init": str(first.path), **asked.pop("start", {})}
        return trained(name, seed, minutes, settings, {**asked, "start": start})


def taught(name: str, seed: int, minutes: float, settings: Sequence[str]) -> Embedded:
    asked = nested(settings)
    head = {"teacher": str(as_it_is(name).path), **asked.pop("head", {})}
    return trained(name, seed, minutes, settings, {"method": "distill", **asked, "head": head})


KINDS: dict[str, Callable[[str, int, float, Sequence[str]], Embedded]] = {
    "crlf": trained,
    "init": gone_on,
    "again": again,
    "taught": taught,
}


def contestant(text: str) -> Callable[[str, int], Embedded]:
    """The function of a name such as "init 3 optim.lr=0.0001".

    Raises:
        InputError: there is none of this name.
    """
    match text.split():
        case ["model", size] if size.isdigit():
            return lambda name, seed: given(name, seed, int(size))
        case [kind, minutes, *words] if kind in KINDS and is_number(minutes) and all("=" in one for one in words):
            return lambda name, seed: KINDS[kind](name, seed, float(minutes), words)
    raise unknown("contestant", text, ALL)


def markdown(found: results.Results) -> str:
    """A table of accuracies a set, then what each is worth beside the others."""
    parts = [results.accuracies(found, name) for name in found.sets]
    lines: list[list[str]] = []
    sums: dict[tuple[str, str], list[list[results.Mean]]] = {}
    for name in found.sets:
        for one, other in HELD:
            who, whom = (next((c for c in found.contestants(name) if c.startswith(f"{k} ")), "") for k in (one, other))
            if who and whom:
                means = [found.difference(name, who, whom, probe) for probe in results.PROBES]
                sums.setdefault((who, whom), []).append(means)
                lines.append([f"{name}: {who} less {whom}", *results.cells(means)])
    for (who, whom), by_set in sums.items():
        together = [results.together(column) for column in zip(*by_set, strict=True)]
        lines.append([f"{results.SEVERAL}: {who} less {whom}", *results.cells(together)])
    title = "The differences on the same images, points; * outside of the 95 % interval"
    return "\n\n".join([*parts, title, results.table(["", *results.PROBES.values(), "mean"], lines)])


def losses(found: results.Results) -> str:
    """Distilling by each way to agree, beside SimCLR in the same time: a table for each set with several of them."""
    taught_or_not = ("taught ", "crlf ")
    only = results.Results(
        row
        for (name, who), rows in found.rows.items()
        for row in rows.values()
        if who.startswith(taught_or_not) and sum(one.startswith("taught ") for one in found.contestants(name)) > 1
    )
    return "\n\n".join(results.accuracies(only, name) for name in only.sets) or "not measured"


def main(argv: Sequence[str]) -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench transfer", description="What trained weights are worth on photographs."
    )
    parser.add_argument("--sets", default=SETS, help=f"of {', '.join(REPORTED)}")
    parser.add_argument("--contestants", default=";".join(ALL), help=f"with semicolons between: {'; '.join(ALL)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=Path, default=ROWS, help="a file of JSON lines to go on from")
    parser.add_argument("--table", action="store_true", help="only print what the rows say")
    parser.add_argument("--record", action="store_true", help="append the table to bench/records.jsonl")
    asked = parser.parse_args(argv)
    if not asked.table:
        sets, wanted = asked.sets.split(","), [one.strip() for one in asked.contestants.split(";")]
        if wrong := [one for one in sets if one not in REPORTED]:
            raise unknown("set of photographs", wrong[0], REPORTED)
        if not all(seed.isdigit() for seed in asked.seeds.split(",")):
            raise InputError(f"seeds are whole numbers with commas between, not {asked.seeds!r}")
        keep_freed_memory()  # as the commands of crlf do
        fill(sets, wanted, [int(seed) for seed in asked.seeds.split(",")], asked.rows, contestant)
    every = results.Results(results.read(asked.rows))
    found = results.Results(row for row in results.read(asked.rows) if row["contestant"] in ALL)
    print(markdown(found), losses(every), sep="\n\n")
    if asked.record:
        record(found, losses(every))
    return 0


def record(found: results.Results, of_losses: str) -> None:
    """Append the accuracies and the tables to the records; write them into the docs."""
    from bench import __main__ as bench

    bench.keep("transfer", results.summary(found), text=markdown(found), losses=of_losses)
    readme.write(bench.RECORDS)
