"""Decoding JPEG photographs to squares of 64 and 224 pixels: images a second of CRLF, of torchvision and of Pillow.

The photographs are made here: 500 × 375 pixels, quality 90, 66 kB each, smooth shapes with the noise of a camera. All
give RGB from the bytes in memory. Pillow's loop decodes at full size and then shrinks, as an image-folder loader does;
CRLF lets libjpeg-turbo decode at 1/2, 1/4 or 1/8 first (Pillow's draft), to at least twice the size.

Images a CPU second count the time of this process alone, which other programs on the machine hardly change; images a
second are by the clock.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from bench.timing import in_turn
from crlf.data.encoded import Decoder, Encoded, threads
from crlf.data.files.decode import decode
from crlf.data.files.listing import File, look_at
from crlf.runtime.devices import one_thread

COUNT, SIDES, DIFFERENT = 192, (64, 224), 32


@functools.cache
def photographs() -> list[bytes]:
    random = np.random.default_rng(0)
    return [photograph(random) for _ in range(DIFFERENT)]


def photograph(random: np.random.Generator) -> bytes:
    shapes = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    noisy = (smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def written(folder: Path, count: int) -> list[File]:
    """The photographs in turn, as files."""
    found = []
    for row in range(count):
        path = folder / f"{row:05}.jpg"
        path.write_bytes(photographs()[row % DIFFERENT])
        found.append(look_at(path.name, str(path)))
    return found


def by_pillow(data: bytes, side: int, draft: bool = False) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft(None, (2 * side, 2 * side))
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box))


def by_torchvision(data: bytes, side: int) -> torch.Tensor:
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return F.center_crop(F.resize(pixels, [side], F.InterpolationMode.BICUBIC, antialias=True), [side, side])


def by_crlf(row: int, side: int) -> np.ndarray:
    return decode(photographs()[row % DIFFERENT], side)


def loop(one: Callable[[bytes], object]) -> None:
    for row in range(COUNT):
        one(photographs()[row % DIFFERENT])


def measure(rounds: int = 3) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, one_thread():
        files = written(Path(folder), COUNT)
        return [row for side in SIDES for row in at_side(side, files, rounds)]


def at_side(side: int, files: list[File], rounds: int) -> list[dict[str, Any]]:
    images, count = Encoded(files, side, 10**9), threads()
    with Decoder(images, count) as decoder, ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool:

        def in_processes() -> None:
            list(pool.map(functools.partial(by_crlf, side=side), range(COUNT), chunksize=8))

        things: dict[str, Callable[[], object]] = {
            "Pillow, a loop": lambda: loop(functools.partial(by_pillow, side=side)),
            "Pillow with draft, a loop": lambda: loop(functools.partial(by_pillow, side=side, draft=True)),
            "torchvision decode_jpeg and resize, a loop": lambda: loop(functools.partial(by_torchvision, side=side)),
            "CRLF, a loop": lambda: loop(functools.partial(decode, side=side)),
            f"CRLF, {count} threads, from files": lambda: decoder.begin(torch.arange(COUNT)).result(),
            f"CRLF, {count} processes": in_processes,
        }
        spent: dict[str, list[float]] = {name: [] for name in things}
        taken = in_turn({name: functools.partial(noted, thing, spent[name]) for name, thing in things.items()}, rounds)
    return [
        {
            "side": side,
            "how": name,
            "images_per_cpu_second": "" if "processes" in name else round(COUNT / statistics.median(spent[name][1:])),
            "images_per_second": round(COUNT / statistics.median(seconds)),
        }
        for name, seconds in taken.items()
    ]


def noted(thing: Callable[[], object], spent: list[float]) -> None:
    start = time.process_time()
    thing()
    spent.append(time.process_time() - start)
