"""Searches for the nearest neighbours of an image by the cosine similarity of embeddings.

The search is exact: matrix products compare the image with every row of the table, a few thousand at a time. Filling an
index of faiss takes longer than one scan (`python -m bench search`), so it pays only for thousands of queries;
docs/use-the-encoder.md shows how.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crlf.data.lookup import of_file, pictures
from crlf.embedding.table import Table
from crlf.errors import InputError
from crlf.inference.encoder import load
from crlf.metrics.cosine import top_k, unit
from crlf.runs.files import write_bytes
from crlf.runs.run import TABLE, Run
from crlf.visualization.figures.search_results import Tile, gallery

COPY = 1 - 1e-6  # images with at least this cosine are copies


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of the query: a row of the table."""

    row: int
    id: str
    similarity: float
    """Cosine similarity of the two embeddings, in -1..1."""
    label: str | None
    """The name of its class, or None if the table has none."""


def search(
    run: Run | str | Path,
    images: tuple[str | Path, ...] = (),
    *,
    k: int = 10,
    distinct: bool = False,
    among: str | Path | None = None,
    figure: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> list[list[Neighbour]]:
    """Find the nearest neighbours of images, and print the similarity, class and name of each.

    Args:
        run: the run whose encoder is used.
        images: the image files to search for.
        k: the number of neighbours per image.
        distinct: leave out the image itself, its copies, and copies of neighbours already listed. Copies have a cosine
            of at least 1 - 1e-6.
        among: the table to search, as written by `crlf embed RUN PATH`; by default the run's own images.
        figure: a .png file to write, with each image and its neighbours.
        data_dir: the folder of the named data sets, for the images in the figure; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the best available.

    Returns:
        The neighbours of each image, nearest first; ties are in the order of the table's rows.

    Raises:
        InputError: an image or a table cannot be read, or the table's embeddings have another length.
    """
    run = Run.open(run)
    paths = [images] if isinstance(images, str | Path) else list(images)
    if not paths:
        raise InputError("no image to search with: name one or more image files")
    if k < 1:
        raise InputError(f"k must be 1 or more, not {k}")
    if figure is not None and Path(figure).suffix.lower() != ".png":
        raise InputError(f"figure {str(figure)!r} must end in .png")
    encoder = load(run, device=device)
    with open_table(run, among) as table:
        if table.dim != encoder.dim:
            rule = f"must hold embeddings of length {encoder.dim}, as this run's encoder gives"
            raise InputError(f"table {str(table.path)!r} {rule}, not {table.dim}")
        queries = encoder.encode(paths)
        found = look_up(table, *(apart if distinct else nearest)(queries, table, k))
        source = table.source
    for path, neighbours in zip(paths, found, strict=True):
        print(listed(str(path), neighbours))
    if figure is not None:
        write_bytes(Path(figure), gallery(tiles(paths, found, source, data_dir)))
        print(f"drawn: {str(figure)!r}")
    return found


def open_table(run: Run, among: str | Path | None) -> Table:
    path = run.file(TABLE) if among is None else Path(among)
    if among is None and not path.exists():
        raise InputError(f"{str(path)!r} is missing: `crlf embed {run.path}` makes it")
    return Table(path)


def nearest(queries: np.ndarray, among: Table | Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest cosine similarity, by exact search.

    Args:
        queries: float32 (Q, D).
        among: the rows to search: a table, or arrays float32 (n, D) in order.
        k: the number of rows per query; fewer if there are fewer rows.

    Returns:
        Rows, int64 (Q, k), and similarities, float32 (Q, k), largest first; ties are in the order of the rows. The
        similarity to a row of zeros is 0.
    """
    parts = among.embeddings() if isinstance(among, Table) else among
    found = top_k(unit(queries), map(unit, parts), k)
    return found.rows.numpy(), found.cosines.numpy()


def apart(queries: np.ndarray, table: Table, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As `nearest`, with up to k rows per query that are not copies of it or of each other."""
    asked = 2 * k
    while True:
        rows, cosines = nearest(queries, table, asked)
        wanted, held = np.unique(rows), embeddings_of(table, rows)
        kept = [
            singles(query, held[np.searchsorted(wanted, own)])[:k] for query, own in zip(queries, rows, strict=True)
        ]
        if asked >= len(table) or all(len(places) == k for places in kept):
            both = ([part[places] for part, places in zip(whole, kept, strict=True)] for whole in (rows, cosines))
            return next(both), next(both)
        asked *= 4


def embeddings_of(table: Table, rows: np.ndarray) -> np.ndarray:
    """The embeddings of the distinct rows, in ascending order: float32 (n, D)."""
    wanted, first, found = np.unique(rows), 0, []
    for part in table.embeddings():
        found.append(part[wanted[(first <= wanted) & (wanted < first + len(part))] - first])
        first += len(part)
    return np.concatenate(found)


def singles(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices of the rows that are not copies of the query or an earlier row: float32 (D,), (n, D) -> int64 (m,)."""
    every = unit(np.concatenate([query[None], rows]).astype(np.float64))  # in float32 a cosine is off by 1e-7
    copies = (every @ every.T).numpy() >= COPY
    seen = [0]
    for place in range(1, len(every)):
        if not copies[place, seen].any():
            seen.append(place)
    return np.array(seen[1:], dtype=np.int64) - 1


def look_up(
    table: Table, rows: Sequence[np.ndarray] | np.ndarray, similarities: Sequence[np.ndarray] | np.ndarray
) -> list[list[Neighbour]]:
    """The neighbours of each query, with their entries in the table."""
    wanted, first = np.unique(np.concatenate(list(rows))), 0
    told: dict[int, dict[str, str | None]] = {}
    for batch in table.batches([name for name in ("id", "class") if name in table.columns]):
        here = wanted[(first <= wanted) & (wanted < first + batch.num_rows)]
        told |= dict(zip(here.tolist(), batch.take(here - first).to_pylist(), strict=True))
        first += batch.num_rows
    return [
        [Neighbour(row, str(told[row]["id"]), near, told[row].get("class")) for row, near in zip(own, far, strict=True)]
        for own, far in ((a.tolist(), b.tolist()) for a, b in zip(rows, similarities, strict=True))
    ]


def tiles(
    paths: Sequence[str | Path], found: Sequence[Sequence[Neighbour]], source: str, data_dir: str | Path | None
) -> list[tuple[Tile, list[Tile]]]:
    """Each image and its neighbours, as input for `gallery`."""
    seen = pictures(source, sorted({one.id for neighbours in found for one in neighbours}), data_dir)

    def near(one: Neighbour) -> Tile:
        return Tile(seen.get(one.id), (f"{one.similarity:.3f}", one.label or one.id))

    queries = [of_file(os.path.expanduser(path)) for path in paths]
    return [
        (Tile(image.transpose(1, 2, 0) if image is not None else None, (Path(path).name,)), [*map(near, neighbours)])
        for image, path, neighbours in zip(queries, paths, found, strict=True)
    ]


def listed(query: str, neighbours: Sequence[Neighbour]) -> str:
    """The neighbours of an image as lines: similarity, class and name."""
    width = max((len(plain(one.label or "")) for one in neighbours), default=0)
    lines = [f"  {one.similarity:6.3f}  {plain(one.label or ''):<{width}}  {plain(one.id)}" for one in neighbours]
    return "\n".join([plain(query), *lines])


def plain(name: str) -> str:
    """A name on one line: characters that cannot be printed are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
