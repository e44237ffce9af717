"""Which measure without labels ranks encoders as a linear probe does?

    python -m bench label-free --sets sky,foods

On each set: raw pixels, the untrained encoder at several sizes, an ImageNet network at several sizes, and encoders
trained for seconds up to minutes, by SimCLR and by VICReg, from scratch and from that network: as `crlf trial` judges.
Spearman's rank correlation of each measure with the linear probe, kNN and few labels, over the encoders of a set. A row
is measured once.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.photos import results
from bench.photos.sets import SETS, folder_of
from bench.transfer.main import SIZE, from_model
from crlf.augmentation import Views
from crlf.evaluation.crops import CROP, crops_and_images, some
from crlf.metrics.geometry import alignment, centred, effective_rank, lidar, singular_values, uniformity
from crlf.pipelines.contestants import Contestant, Images, Place, Shown, own, shown
from crlf.pipelines.judging import folds, judge
from crlf.recipe import Recipe
from crlf.runtime.allocator import keep_freed_memory
from crlf.runtime.seeding import generator
from crlf.text import say

ROWS = Path(__file__).parent.parent / "label-free-rows.jsonl"
SIDES, MINUTES = (32, 48, 64, 96), (0.1, 0.3, 1.0, 3.0)
LIDAR = (200, 8)  # images, and views of each
PROBES = ("linear", "knn", "few")


def encoders() -> Iterator[tuple[str, dict[str, Any], Contestant, float]]:
    """A name, settings of recipe.json, who it is in a trial, and minutes of training."""
    yield "pixels", {}, Contestant("pixels", "pixels"), 0.0
    for side in SIDES:
        yield f"untrained {side}", sized(side), Contestant("untrained", "untrained"), 0.0
    model = {**from_model(), **sized(SIZE)}
    source = model["start"]["init"]
    for side in (*SIDES[1:], SIZE, 192):
        yield f"model {side}", {**model, **sized(side)}, Contestant(f"model {side}", "model", source), 0.0
    for minutes in MINUTES:
        yield f"simclr {minutes:g}", {}, Contestant(f"simclr {minutes:g}", "scratch"), minutes
    for minutes in MINUTES[2:3]:
        yield f"init {minutes:g}", model, Contestant(f"init {minutes:g}", "start", source), minutes
        yield f"vicreg {minutes:g}", {"method": "vicreg"}, Contestant(f"vicreg {minutes:g}", "scratch"), minutes


def sized(side: int) -> dict[str, Any]:
    """Settings for images of this size, all of which are tested: without `hold_out` a recipe's dictionary is taken for
    one of an older version, which held a tenth out."""
    return {"images": {"image_size": side, "hold_out": -1.0}}


def measure(name: str, who: str, settings: dict[str, Any], one: Contestant, minutes: float) -> dict[str, Any]:
    """The row of an encoder: what probes find, and every measure without labels."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.from_dict({"data": str(folder_of(name)), **settings})
        place = Place(recipe, (), Path(folder), None, "cpu")
        images = Images(place)
        found = shown(one, place, images, minutes)
        train, test = images.of(dataclasses.replace(own(recipe), images=recipe.images))
        judged = judge(found, train, test, folds(train, test))
    row = {"set": name, "encoder": who, **{key: round(100 * judged.mean(key), 2) for key in PROBES}}
    row |= {key: float(value) for key, value in {**judged.measures, **geometry_of(found)}.items()}
    say(f"{name}, {who}: {row}")
    return row


def geometry_of(found: Shown) -> dict[str, float]:
    """What the shape of the embeddings says."""
    asked, rows = crops_and_images(found.encoder, some(found.images), found.normalisation)
    return {
        "alignment": -alignment(asked, rows),  # the nearer the better
        "uniformity": -uniformity(rows),  # the more even the better
        "effective_rank": effective_rank(singular_values(centred(rows))),
        "lidar": lidar(views_of(found)),
    }


@torch.no_grad()
def views_of(found: Shown) -> torch.Tensor:
    """Embeddings of several crops of some images: float32 (n, q, D)."""
    count, each = LIDAR
    images = some(found.images)[:count]
    make = Views(CROP, found.normalisation)
    several = [found.encoder(make(images, generator("cpu", "lidar", number))).float() for number in range(each)]
    return torch.stack(several, dim=1)


def correlations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each measure: Spearman's correlation with each probe, the mean over the sets."""
    from scipy.stats import spearmanr

    sets = list(dict.fromkeys(row["set"] for row in rows))
    names = [key for key in rows[0] if key not in ("set", "encoder", *PROBES)]
    found = []
    for name in names:
        line: dict[str, Any] = {"measure": name}
        for probe in PROBES:
            each = []
            for one in sets:
                of_set = [row for row in rows if row["set"] == one]
                each.append(spearmanr([row[name] for row in of_set], [row[probe] for row in of_set]).statistic)
            line[results.PROBES[probe]] = round(float(np.mean(each)), 2)
            if probe == "linear":
                line["by set"] = ", ".join(f"{one} {value:.2f}" for one, value in zip(sets, each, strict=True))
        found.append(line)
    return sorted(found, key=lambda line: -line["linear"])


def main(argv: Sequence[str]) -> int:
    """Measure what is missing, print the correlations."""
    parser = argparse.ArgumentParser(
        prog="python -m bench label-free", description="Which measure without labels ranks encoders as probes do."
    )
    parser.add_argument("--sets", default="sky,foods")
    parser.add_argument("--rows", type=Path, default=ROWS, help="a file of JSON lines to go on from")
    parser.add_argument("--table", action="store_true", help="only print what the rows say")
    parser.add_argument("--record", action="store_true", help="append the table to bench/records.jsonl")
    asked = parser.parse_args(argv)
    keep_freed_memory()  # as the commands of crlf do
    done = {(row["set"], row["encoder"]) for row in results.read(asked.rows)}
    for name in [] if asked.table else [one for one in asked.sets.split(",") if one in SETS]:
        for who, settings, one, minutes in encoders():
            if (name, who) not in done:
                results.append(asked.rows, measure(name, who, settings, one, minutes))
    rows = results.read(asked.rows)
    if not rows:
        print("no rows")
        return 0
    lines = correlations(rows)
    print(results.table(list(lines[0]), [[str(value) for value in line.values()] for line in lines]))
    if asked.record:
        record(rows, lines)
    return 0


def record(rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> None:
    """Append the correlations, and the rows that they are of, to the records."""
    from bench import __main__ as bench

    bench.keep("label-free", list(lines), encoders=list(rows))
