"""The command: `python -m bench photos --sets foods,sky --contestants "pixels;crlf 5" --seeds 0,1,2`.

A row is measured once: what the file of rows holds is not measured again, so that the command can be stopped at any
time and called again. The table is of all rows in the file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench import readme
from bench.photos import protocol, results
from bench.photos.contestants import ALL, Embedded, contestant
from bench.photos.sets import REPORTED, SETS, images
from crlf.errors import InputError, unknown
from crlf.runtime.allocator import keep_freed_memory
from crlf.text import say

ROWS = Path(__file__).parent.parent / "photos-rows.jsonl"
SEEDS = "0,1,2"


def main(argv: list[str]) -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench photos", description="CRLF on real photographs beside an ImageNet network."
    )
    parser.add_argument("--sets", default=",".join(REPORTED), help=f"of {', '.join(SETS)}")
    parser.add_argument("--contestants", default=";".join(ALL), help=f"with semicolons between: {'; '.join(ALL)}")
    parser.add_argument("--seeds", default=SEEDS, help="of encoders, folds and the labels that are drawn")
    parser.add_argument("--rows", type=Path, default=ROWS, help="a file of JSON lines to go on from")
    parser.add_argument("--table", action="store_true", help="only print what the rows say")
    parser.add_argument("--about", action="store_true", help="only say what the sets are made of")
    parser.add_argument("--record", action="store_true", help="append the table to bench/records.jsonl")
    asked = parser.parse_args(argv)
    if asked.about:
        print(packages())
        return 0
    if not asked.table:
        sets, wanted, seeds = asked.sets.split(","), [one.strip() for one in asked.contestants.split(";")], asked.seeds
        if wrong := [one for one in sets if one not in SETS]:
            raise unknown("set of photographs", wrong[0], SETS)
        if not all(seed.isdigit() for seed in seeds.split(",")):
            raise InputError(f"seeds are whole numbers with commas between, not {seeds!r}")
        keep_freed_memory()  # as the commands of crlf do
        fill(sets, wanted, [int(seed) for seed in seeds.split(",")], asked.rows)
    found = results.Results(results.read(asked.rows))
    print(results.markdown(found))
    if asked.record:
        record(found)
    return 0


def fill(
    sets: Sequence[str],
    wanted: Sequence[str],
    seeds: Sequence[int],
    path: Path,
    find: Callable[[str], Callable[[str, int], Embedded]] | None = None,
) -> None:
    """Measure each row that the file does not hold, and append it.

    Args:
        find: the function of a contestant's name; that of this measurement if none is given.
    """
    functions = {who: (find or contestant)(who) for who in wanted}  # a wrong name ends it before the first row
    done = {(row["set"], row["contestant"], row["seed"]) for row in results.read(path)}
    for name in sets:
        for who, embed in functions.items():
            for seed in (seed for seed in seeds if (name, who, seed) not in done):
                start = time.perf_counter()
                shown = embed(name, seed)
                embedded = time.perf_counter() - start
                correct = protocol.measure(shown.emb, shown.labels, seed)
                row = {
                    "set": name,
                    "contestant": who,
                    "seed": seed,
                    "classes": int(shown.labels.max()) + 1,
                    "k": protocol.neighbours(shown.labels),
                    "dim": shown.emb.shape[1],
                    **shown.about,
                    "embed_seconds": round(embedded, 2),
                    "probe_seconds": round(time.perf_counter() - start - embedded, 2),
                    "threads": torch.get_num_threads(),
                    **results.row_of(correct),
                }
                results.append(path, row)
                means = (f"{what} {results.mean(getattr(correct, key))}" for key, what in results.PROBES.items())
                say(f"{name}, {who}, seed {seed}: {', '.join(means)}; {time.perf_counter() - start:.0f} s")


def record(found: results.Results) -> None:
    """Append the accuracies, without the single images, and the tables to the records; write them into the docs."""
    from bench import __main__ as bench

    bench.keep("photos", results.summary(found), text=results.markdown(found))
    readme.write(bench.RECORDS)


def packages() -> str:
    """Markdown: what each set is made of."""
    lines = []
    for name, one in REPORTED.items():
        shown = images(name, 16)
        made = "; ".join(f"{package}, {package.licence}" for package in one.packages) or "1,000 images of CIFAR-10"
        lines.append([name, f"{len(shown.labels):,}", str(len(shown.classes)), made, one.labels])
    return results.table(["set", "photographs", "classes", "packages", "labels"], lines)
