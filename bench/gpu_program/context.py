"""What every part is given: the device, sizes, the clock, and where its results go."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu_program.program import Emit


@dataclass(frozen=True)
class Sizes:
    """How much is done: in full on a GPU, in small where the program is tried on a CPU."""

    data: str = "cifar10"
    subset: int = 0
    encoders: tuple[str, ...] = ("cnn", "resnet18", "vit_tiny")
    batches: tuple[int, ...] = (512, 1024)
    steps: int = 20
    """Of a measurement of speed, a round."""
    rounds: int = 2
    matrix: int = 8192
    """Side of the matrices whose product measures the peak."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the record's recipe is changed to."""
    long: dict[str, Any] = field(default_factory=dict)
    held_out: int = 5000
    ending: float = 25.0
    """Seconds that the record keeps for embedding and scoring."""
    smoke: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    """What every recipe of the search is changed to."""
    candidates: int = 24
    """With which the search begins."""
    pflop: float = 0.1
    """Of the longest run of the search."""
    change: float = 100.0
    """PFLOP that a run of a design has at most."""
    factors: tuple[str, ...] = ()
    """Designs that are tried; () for all."""


TINY = Sizes(
    data="shapes",
    subset=512,
    encoders=("cnn",),
    batches=(16,),
    steps=2,
    rounds=1,
    matrix=64,
    record={"encoder": "cnn", "epochs": 4, "batch_size": 64, "views": 2},
    long={"encoder": "cnn", "epochs": 1000, "batch_size": 64, "views": 2, "method": "simclr", "head": None},
    held_out=128,
    ending=2.0,
    smoke={"batch_size": 64, "views": 2},
    small={"encoder": "cnn", "batch_size": 64},
    candidates=3,
    pflop=2e-5,
    change=4e-6,
    factors=("cnn",),
)
SIZES = {"full": Sizes(), "tiny": TINY}


class Clock:
    """Seconds of a part that are left."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass
class Context:
    """What a part works with."""

    device: torch.device
    sizes: Sizes
    clock: Clock
    state: Path
    """A folder that stays on the machine between two calls: compiled kernels, unfinished runs."""
    out: Path
    """The folder whose files are brought back."""
    brought: Path | None
    """The folder that an earlier call brought back."""
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    """What the record's recipe is changed to: "optim.lr" -> 0.04."""
    emit: Emit
    earlier: list[dict[str, Any]]
    """The rows of the parts before, and of an earlier call."""

    def rows(self, part: str, table: str = "") -> list[dict[str, Any]]:
        """Of the rows so far those of one table of a part."""
        return [row for row in self.earlier if row["part"] == part and row.get("table", "") == table]

    def fastest(self, encoder: str, default: str = "none") -> str:
        """The way to compile that trained this encoder fastest, where it was measured."""
        rows = [row for row in self.rows("speed", "loop") if row["encoder"] == encoder and row["what"] == "CRLF's loop"]
        return max(rows, key=lambda row: row["images_a_second"])["compile"] if rows else default

    def speed(self, encoder: str) -> float:
        """Views a second of the fastest; 0 where it was not measured."""
        rows = [row for row in self.rows("speed", "loop") if row["encoder"] == encoder and row["what"] == "CRLF's loop"]
        return max((row["images_a_second"] * row["views"] for row in rows), default=0.0)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows that a call left in its folder; none where there is no whole file."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError):
        return []
