"""Explore: the embeddings of a run and its images, in the browser, by embedding-atlas.

For sets that are too large for the one page of the report: embedding-atlas draws millions of points.
https://apple.github.io/embedding-atlas
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crlf.errors import InputError, require
from crlf.runs.files import replacing
from crlf.runs.run import Run

if TYPE_CHECKING:
    from crlf.data import ImageSet

TABLE = "explore.parquet"
SIDE = 96  # pixels of the longer side of a thumbnail, at most
ROWS = 1000  # rows in memory at a time


def explore(
    run: Run | str | Path,
    *,
    split: str = "",
    port: int = 5055,
    data_dir: str | Path | None = None,
    table_only: bool = False,
) -> Path:
    """Open the embeddings of a run in embedding-atlas: a map of the images, to search, select and compare.

    Writes explore.parquet to the run: id, split, label, image (a thumbnail as PNG, in the form of Hugging Face) and
    embedding of each row. The map is a UMAP, which embedding-atlas makes of the embeddings. Nothing leaves the machine.

    Args:
        run: the run folder, embedded.
        split: the images to show: train or test; by default both.
        port: the port of the page on this machine.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        table_only: write the table, and do not start embedding-atlas.

    Returns:
        The table.

    Raises:
        InputError: embedding-atlas is missing, the run was not embedded, or its images are not those that it embedded.
    """
    run = Run.open(run)
    if split not in ("", "train", "test"):
        raise InputError(f"split must be train or test, not {split!r}")
    require("crlf explore", "explore", "pyarrow", *([] if table_only else ["embedding_atlas"]))
    path = run.file(TABLE)
    write_table(path, run, [split] if split else ["train", "test"], data_dir)
    print(f"wrote {path}")
    if not table_only:
        start(path, port)
    return path


def start(path: Path, port: int) -> None:
    """Run embedding-atlas on the table until Ctrl-C stops it.

    Raises:
        InputError: it ended by itself.
    """
    command = [sys.executable, "-m", "embedding_atlas.cli", str(path), "--vector", "embedding", "--image", "image"]
    command += ["--host", "localhost", "--port", str(port)]
    code = 0
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to end a server
        code = subprocess.run(command, check=False).returncode
    if code:
        raise InputError(f"embedding-atlas ended with exit code {code}; the table is {str(path)!r}")


def write_table(path: Path, run: Run, splits: list[str], data_dir: str | Path | None) -> None:
    """Write the table, a group of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crlf.data import first_of, load

    recipe = run.recipe
    loaded = first_of(*load(recipe.data, data_dir, recipe.images), recipe.subset)
    sets = dict(zip(("train", "test"), loaded, strict=True))
    if sets["test"] is sets["train"] and len(splits) > 1:  # cross-validation: both splits are the same images
        splits = splits[:1]
    embedded = {name: run.array(f"{name}_emb.npy") for name in splits}
    width = next(iter(embedded.values())).shape[1]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("id", pa.string()), ("split", pa.string()), ("label", pa.string()), ("image", image)]
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), width))])
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for name, rows in embedded.items():
            for group in groups(run, name, sets[name], rows):
                writer.write_table(pa.table(group, schema=schema))


def groups(run: Run, name: str, split: ImageSet, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """The columns of the table, some rows at a time.

    Raises:
        InputError: the embeddings are of another number of images.
    """
    import pyarrow as pa

    if len(rows) != len(split):
        what = f"{str(run.file(f'{name}_emb.npy'))!r} has {len(rows)} rows, but {run.recipe.data!r} has {len(split)}"
        raise InputError(f"{what} {name} images: `crlf embed {run.path}` embeds them again")
    for first in range(0, len(rows), ROWS):
        part = slice(first, first + ROWS)
        ids, labels = list(split.ids[part]), None if split.labels is None else split.labels[part].tolist()
        flat = pa.array(rows[part].astype(np.float32).ravel())
        yield {
            "id": ids,
            "split": [name] * len(ids),
            "label": [None] * len(ids) if labels is None else [split.classes[label] for label in labels],
            "image": [
                {"bytes": thumbnail(pixels), "path": None} for pixels in split.images[part].permute(0, 2, 3, 1).numpy()
            ],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }


def thumbnail(pixels: np.ndarray) -> bytes:
    """An image uint8 (H, W, C) as PNG, reduced to a thumbnail; with an unusual number of channels, only the first."""
    from PIL import Image

    channels = pixels.shape[2]
    picture = Image.fromarray(pixels if channels in (3, 4) else np.ascontiguousarray(pixels[:, :, 0]))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
