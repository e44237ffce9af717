"""Batches of encoded images, decoded ahead of the step, beside batches from memory: what decoding costs a step.

JPEG photographs (`bench.decode`) at 64 pixels, loose and in a WebDataset shard, 16 a step. On an accelerator the CPU is
free while a step runs; here a wait of 0.25 s stands for the step. It is no measure of training on the CPU, where a
network and the decoding share the cores.
"""

from __future__ import annotations

import functools
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.decode import photographs, written
from bench.timing import each_in_turn, median_ratio
from crlf.data.encoded import Encoded, Pixels
from crlf.data.files.listing import look_at
from crlf.data.files.tars import unpacked
from crlf.data.loader import batch_rows, batches

COUNT, BATCH, STEPS, SIDE = 64, 16, 16, 64
WAIT = 0.25  # seconds
CPU = torch.device("cpu")


def shard(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for row in range(COUNT):
            data = photographs()[row % len(photographs())]
            member = tarfile.TarInfo(f"{row:05}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder / "a.tar"


def measure(rounds: int = 3) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tar = shard(folder)
        loose = Encoded(written(folder, COUNT), SIDE, 10**9)
        packed = Encoded(unpacked([look_at(tar.name, str(tar))]), SIDE, 10**9)
        sources: dict[str, Pixels] = {"memory": loose[:], "files": loose, "a tar shard": packed}
        waits = {source: functools.partial(seconds, images) for source, images in sources.items()}
        taken = each_in_turn(waits, rounds)
    return [
        {
            "images_from": source,
            "ms_a_step": round(1000 * statistics.median(times) / (STEPS - 1), 1),
            "of_memory": round(median_ratio(times, taken["memory"]), 3),
        }
        for source, times in taken.items()
    ]


def seconds(images: Pixels) -> float:
    """The time of `STEPS` steps but the first, which waits for its images."""

    def rows_of(number: int) -> torch.Tensor:
        return batch_rows(number, images, BATCH, 0)

    with batches(images, rows_of, CPU) as pixels:
        pixels[0]
        start = time.perf_counter()
        for number in range(1, STEPS):
            pixels[number]
            time.sleep(WAIT)
        return time.perf_counter() - start
