"""Embeds new images on a Ray cluster, by Ray Data (pip install 'crlf[ray]').

The images are divided into the same batches as on one machine. Workers on CPUs decode the batches, one worker per
device embeds them, and this process writes the rows in the order of the source, in tables of `ROWS` rows. A batch is a
pure function of its number: if a worker or a host dies, Ray computes the lost batches again, with the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crlf.data.files.decode_cache import write_table
from crlf.data.stream import Part, Source
from crlf.embedding.table import Writer
from crlf.encoders import Frozen
from crlf.errors import InputError, require
from crlf.normalisation import Normalisation
from crlf.runtime.devices import pick_device
from crlf.runtime.interrupts import Interrupted, stop_requests

ROWS = 100_000  # rows of a table: 200 MB of embeddings of length 512
SKIPPED = "skipped.csv"
FILES = (".parquet", ".npy", ".csv")  # suffixes of what the local engine writes; a folder may have any other
PARTS = "parts"  # the column that is passed from worker to worker


@dataclass(frozen=True)
class Reading:
    """How a worker reads a batch."""

    source: Source | Callable[[], Source]
    """The images, or a function that opens them on a worker; a table is decoded into the cache of each host."""
    images: int
    """The number of images."""
    batch_size: int

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch_size)


@dataclass(frozen=True)
class Turning:
    """How a worker embeds a batch."""

    encoder: Frozen
    """The encoder, on the CPU."""
    normalisation: Normalisation
    device: str
    """The device on the worker's host, as for `crlf.embed`."""
    embed: Callable[..., np.ndarray]
    """`crlf.embedding.embed.embed_images`."""
    threads: int
    """Threads of torch on a worker: as many as on this machine, so that sums have the same order and bits."""


@dataclass(frozen=True)
class Told:
    """The result of a worker: a value, or an InputError, which Ray would otherwise retry and wrap.

    Ray leaves an object of another class in a cell unchanged, while it would convert a list to an array.
    """

    value: Any


def told(make: Callable[[], Any]) -> dict[str, Told]:
    try:
        return {PARTS: Told(make())}
    except InputError as error:
        return {PARTS: Told(error)}


class Reader:
    """A worker that decodes batches."""

    def __init__(self, shared: Any):
        import ray

        self.reading: Reading = ray.get(shared)

    @functools.cached_property
    def source(self) -> Source:
        return self.reading.source() if callable(self.reading.source) else self.reading.source

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The batch with this number: a list of its parts, one unless the batch contains the end of a split."""
        first = int(row["id"]) * self.reading.batch_size
        rows = range(first, min(first + self.reading.batch_size, self.reading.images))
        return told(lambda: list(self.source.parts(rows, self.reading.batch_size)))


class Embedder:
    """A worker that embeds batches."""

    def __init__(self, shared: Any):
        import ray

        self.turning = turning = ray.get(shared)
        torch.set_num_threads(turning.threads)  # Ray gives a worker one
        self.encoder = turning.encoder.to(pick_device(turning.device))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        parts = row[PARTS].value
        return row if isinstance(parts, InputError) else told(lambda: [self.embedded(part) for part in parts])

    def embedded(self, part: Part) -> tuple[Part, np.ndarray]:
        """The part without its pixels, and float32 (n, D)."""
        rows = np.empty((0, self.encoder.out_dim), np.float32)
        if len(part.ids):
            rows = self.turning.embed(self.encoder, part.images, self.turning.normalisation, len(part.ids))
        bare = Part(list(part.ids), part.images[:0].clone(), part.split, part.labels, part.classes, part.skipped)
        return bare, rows


def require_free(out: Path, overwrite: bool) -> None:
    """Raise InputError unless the folder of the tables can be written."""
    if out.suffix.lower() in FILES:
        raise InputError(f"out {str(out)!r} must be a folder, without a suffix, for engine 'ray'")
    if out.exists() and not out.is_dir():
        raise InputError(f"out {str(out)!r} must be a folder for engine 'ray', and it is a file")
    if not out.parent.is_dir():
        raise InputError(f"out {str(out)!r} cannot be written: folder {str(out.parent)!r} does not exist")
    if out.exists() and not (overwrite and all(file.name == SKIPPED or is_table(file) for file in out.iterdir())):
        how = "--overwrite replaces a folder of tables alone, --out names another"
        raise InputError(f"{str(out)!r} already exists: {how}")


def is_table(file: Path) -> bool:
    return file.name.startswith("part-") and file.suffix == ".parquet"


def write(reading: Reading, turning: Turning, out: Path, note: str) -> tuple[int, int]:
    """Embed a source on the cluster into a folder of tables, in order.

    Args:
        out: the folder.
        note: the source of the images, which the tables record.

    Returns:
        How many rows were written, and how many files were skipped.

    Raises:
        InputError: Ray is missing, no image can be read, a source has changed, or the folder cannot be written. Nothing
            is left then.
        Interrupted: Ctrl-C or SIGTERM. Nothing is left.
    """
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    skipped: list[tuple[str, str]] = []
    try:
        temporary.mkdir()
        with stop_requests() as stop, Tables(temporary, turning.encoder.out_dim, note) as tables:
            for part, rows in embedded(reading, turning):
                skipped += part.skipped
                tables.add(part, rows)
                if stop:
                    raise Interrupted(stop[0], "stopped: nothing was written")
        if not tables.rows:
            name, why = skipped[0]
            raise InputError(f"none of {len(skipped):,} files is an image; the first is {name!r}: {why}")
        if skipped:
            write_table(temporary / SKIPPED, ("path", "reason"), skipped)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"out {str(out)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tables.rows, len(skipped)


class Tables:
    """Tables of `ROWS` rows in a folder, one after another."""

    def __init__(self, folder: Path, dim: int, note: str):
        self.folder, self.dim, self.note = folder, dim, note
        self.rows = self.count = 0
        self.open = contextlib.ExitStack()
        self.writer: Writer | None = None

    def add(self, part: Part, rows: np.ndarray) -> None:
        if self.writer is None or self.writer.rows >= ROWS:
            self.open.close()
            file = self.open.enter_context((self.folder / f"part-{self.count:05}.parquet").open("wb"))
            self.writer = self.open.enter_context(Writer(file, self.dim, self.note))
            self.count += 1
        if len(part.ids):
            self.writer.add(part.ids, rows, part.split, part.labels, part.classes)
            self.rows += len(part.ids)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.__exit__(*error)


def embedded(reading: Reading, turning: Turning) -> Iterator[tuple[Part, np.ndarray]]:
    """The parts of a source in order, each with its embeddings."""
    require("engine 'ray'", "ray", "ray")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # a dead worker is replaced, so the user need not know
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():  # RAY_ADDRESS names a cluster; else this machine is one
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if turning.device in ("auto", "cuda") else 0
    hosts = sum(node["Alive"] for node in ray.nodes())
    devices: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    decoders = workers(1, max(1, int(there.get("CPU", 1)) - hosts))
    embedders = workers(gpus or hosts, gpus or hosts)
    numbers: Any = ray.data.range(reading.batches, override_num_blocks=reading.batches)
    decoded = numbers.map(Reader, fn_constructor_args=(ray.put(reading),), compute=decoders)
    turned = decoded.map(Embedder, fn_constructor_args=(ray.put(turning),), compute=embedders, **devices)
    try:
        for row in turned.iter_rows():
            parts = row[PARTS].value
            if isinstance(parts, InputError):
                raise parts
            yield from parts
    except ray.exceptions.RayError as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(f"engine 'ray' failed: {last[:200]}") from error


def workers(least: int, most: int) -> Any:
    import ray.data

    return ray.data.ActorPoolStrategy(min_size=least, max_size=most)
