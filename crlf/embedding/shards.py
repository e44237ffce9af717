"""Embeds any number of images into a table: streamed, and shared among the processes of `torchrun`.

Each rank embeds a contiguous part of the images into its own table, a shard; rank 0 joins the shards in order. Shards
are cut between batches, so the rows have the same bits for any number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from crlf.data.files.decode_cache import write_table
from crlf.data.stream import Part, Source
from crlf.embedding.table import Writer, join
from crlf.errors import InputError
from crlf.runs.files import replacing
from crlf.runtime import distributed
from crlf.runtime.interrupts import Interrupted, stop_requests

SUFFIX = ".parquet"
ADVICE = "nothing was written, start again"  # where a process is gone


def named_after(path: str | Path) -> str:
    """The default name of the table for the images at a path, such as photos_embeddings.parquet."""
    whole = Path(os.path.abspath(os.path.expanduser(path)))
    return f"{(whole.name if whole.is_dir() else whole.stem) or 'new'}_embeddings{SUFFIX}"


def require_free(out: Path, overwrite: bool, source: Path) -> None:
    """Raise InputError unless the table and the files beside it can be written without replacing the images."""
    if out.suffix.lower() != SUFFIX:
        raise InputError(f"out {str(out)!r} must end in {SUFFIX}")
    if not out.parent.is_dir():
        raise InputError(f"out {str(out)!r} cannot be written: folder {str(out.parent)!r} does not exist")
    for path in beside(out):
        if path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"out {str(out)!r} would replace the images in {str(source)!r}: choose another")
        if path.exists() and not overwrite:
            raise InputError(f"{str(path)!r} already exists: --overwrite replaces it, --out names another")


def beside(out: Path) -> tuple[Path, Path, Path]:
    """The table, the array of its embeddings, and the list of the files that were skipped."""
    return out, out.with_suffix(".npy"), out.with_name(f"{out.stem}_skipped.csv")


def write(
    source: Source, embed: Callable[[Tensor], np.ndarray], dim: int, out: Path, note: str, batch_size: int
) -> tuple[int, int]:
    """Embed a source; every rank calls this, and rank 0 writes the table, its .npy file and the list of skipped files.

    Args:
        source: the images.
        embed: uint8 (n, C, H, W) -> float32 (n, D).
        dim: D.
        out: the table.
        note: the source of the images, which the table records.
        batch_size: images per batch.

    Returns:
        How many rows were written, and how many files were skipped.

    Raises:
        InputError: none of the files is an image, or a file cannot be written. No files are left.
        Interrupted: Ctrl-C or SIGTERM. No files are left.
    """
    shards = [out.with_name(f".{out.name}.shard{rank}") for rank in range(distributed.world())]
    mine = [shards[distributed.rank()]] if distributed.rank() else shards  # to remove in the end
    try:
        with distributed.together(ADVICE):
            skipped = write_shard(shards[distributed.rank()], source, embed, dim, note, batch_size)
            told = distributed.gather((len(source), skipped))
        if distributed.rank() > 0:
            mine = []  # rank 0 removes it, when it has read it
            return 0, 0
        return finish(shards, out, told)
    finally:
        for shard in mine:
            with suppress(OSError):
                shard.unlink()


def finish(shards: Sequence[Path], out: Path, told: Sequence[tuple[int, list[tuple[str, str]]]]) -> tuple[int, int]:
    """Join the shards, and list the files that were skipped."""
    if len({count for count, _ in told}) > 1:
        raise InputError(
            f"the ranks found {' and '.join(str(count) for count, _ in told)} files: did the folder change?"
        )
    skipped = [row for _, rows in told for row in rows]
    if skipped and len(skipped) == told[0][0]:
        name, why = skipped[0]
        raise InputError(f"none of {len(skipped):,} files is an image; the first is {name!r}: {why}")
    rows = join(shards, out)
    list_skipped(beside(out)[2], skipped)
    return rows, len(skipped)


def list_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    try:
        if skipped:
            write_table(path, ("path", "reason"), skipped)
        else:
            path.unlink(missing_ok=True)  # from an earlier table
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def write_shard(
    path: Path, source: Source, embed: Callable[[Tensor], np.ndarray], dim: int, note: str, batch_size: int
) -> list[tuple[str, str]]:
    """Embed this rank's part of a source into a table; returns the skipped files, each with its reason."""
    skipped: list[tuple[str, str]] = []
    with stop_requests() as stop, replacing(path) as file, Writer(file, dim, note) as writer:
        for part in shown(source, batch_size):
            skipped += part.skipped
            if len(part.ids):
                writer.add(part.ids, embed(part.images), part.split, part.labels, part.classes)
            if stop:
                raise Interrupted(stop[0], "stopped: nothing was written")
    return skipped


def shown(source: Source, batch_size: int) -> Iterator[Part]:
    """The batches of this rank's part, with a progress bar on rank 0's terminal."""
    batches = distributed.part_of(-(-len(source) // batch_size))
    rows = range(batches.start * batch_size, min(batches.stop * batch_size, len(source)))
    quiet = True if distributed.rank() else None  # None: unless stderr is a terminal
    with tqdm(desc="embedding", total=len(rows), unit=" images", disable=quiet, leave=False) as bar:
        for part in source.parts(rows, batch_size):
            yield part
            bar.update(len(part.ids) + len(part.skipped))
