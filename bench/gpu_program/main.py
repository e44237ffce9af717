"""The command: `python -m bench gpu-program --out FOLDER --seconds 540`."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_program import tables
from bench.gpu_program.child import SHARES, part
from bench.gpu_program.context import SIZES, rows_in
from bench.gpu_program.factors import changed
from bench.gpu_program.program import run
from crlf.data import cache_dir
from crlf.errors import InputError, unknown
from crlf.recipe import RECIPES

ROOT = Path(__file__).parent.parent.parent
PRELOADED = (
    "torch", "torch.utils.flop_counter", "torch.profiler", "torchvision", "sklearn", "scipy.optimize",
    *(f"bench.gpu_program.{name}" for name in SHARES),
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the program; the exit code is 0 when every part was done."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu-program", description="Use minutes of a GPU well.")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is brought back")
    parser.add_argument("--seconds", type=float, default=540, help="within which the program ends")
    parser.add_argument("--parts", default=",".join(SHARES), help="names, each with =SECONDS if not its usual share")
    parser.add_argument("--seeds", default="0", help="of the record, such as 1,2")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the record's recipe")
    parser.add_argument("--state", type=Path, default=None, help="a folder that stays on the machine")
    parser.add_argument("--earlier", type=Path, help="the folder that an earlier call brought back: go on from it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", choices=SIZES, default="full", help="tiny: to try the program on a CPU")
    asked = parser.parse_args(argv)
    if asked.seconds < 10:
        raise InputError(f"seconds must be 10 or more, not {asked.seconds:g}")
    seeds = tuple(whole(seed) for seed in asked.seeds.split(","))
    state = asked.state or cache_dir() / "gpu-program"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((state / "inductor").resolve()))
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")  # a killed part's
    common = (asked.out, state, asked.earlier, asked.device, asked.sizes, seeds, settings(asked.set))
    parts = [part(name, share, *common) for name, share in shares(asked.parts)]
    earlier = rows_in(asked.earlier) if asked.earlier else []
    about = {
        "date": datetime.date.today().isoformat(),
        "source": source(),
        "asked": without_folders(argv),
        "machine": next((row for row in earlier if row["part"] == "look"), {}),
    }
    results = run(asked.out, asked.seconds, parts, about, PRELOADED)
    print(tables.text(results.found))
    return 0 if all(ended["state"] == "done" for ended in results.found["parts"].values()) else 1


def shares(asked: str) -> list[tuple[str, float | None]]:
    """Parts and their seconds: "smoke=20,long" -> [("smoke", 20), ("long", None)]."""
    found = []
    for word in asked.split(","):
        name, _, seconds = word.partition("=")
        if name not in SHARES:
            raise unknown("part", name, SHARES)
        found.append((name, whole(seconds) if seconds else SHARES[name]))
    return found


def settings(asked: Sequence[str]) -> dict[str, Any]:
    """["optim.lr=0.04", "method=byol"] -> {"optim.lr": 0.04, "method": "byol"}"""
    found = {}
    for word in asked:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"set takes NAME=VALUE, not {word!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    changed(RECIPES["speedrun-knn90"], found)  # refuses what no recipe can have
    return found


def without_folders(words: Sequence[str]) -> str:
    """The command's words, as another machine would be given them."""
    pairs = zip(words, ["", *words], strict=False)
    return " ".join("FOLDER" if before in ("--out", "--state", "--earlier") else word for word, before in pairs)


def whole(text: str) -> int:
    if not text.isdigit():
        raise InputError(f"parts and seeds take whole numbers, not {text!r}")
    return int(text)


def source() -> str:
    """A checksum of the program and the package: results are recorded as those of the commit that has the same."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "crlf").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
