"""A table of embeddings that went through pandas, polars or pyarrow is read as the one that was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crlf.embedding.table import Table, Writer
from crlf.errors import InputError

pl = pytest.importorskip("polars")
ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def written(path: Path) -> Path:
    with path.open("wb") as file, Writer(file, 3, "here") as writer:
        writer.add([f"é{i}" for i in range(5)], ROWS, "train", np.arange(5) % 2, ["a", "b"])
    return path


def as_list(kind: pa.DataType) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = pq.read_table(path)
        column = pa.array([row.tolist() for row in ROWS], kind)
        pq.write_table(table.set_column(table.schema.get_field_index("embedding"), "embedding", column), path)

    return write


WAYS: dict[str, Callable[[Path], object]] = {
    "pandas": lambda path: pd.read_parquet(path).to_parquet(path),
    "polars": lambda path: pl.read_parquet(path).write_parquet(path),
    "polars, lists": lambda path: pl.read_parquet(path).with_columns(
        pl.col("embedding").arr.to_list(), pl.col("id").cast(pl.Categorical)
    ).write_parquet(path),
    "lists": as_list(pa.list_(pa.float32())),
    "large lists": as_list(pa.large_list(pa.float32())),
    "doubles": as_list(pa.list_(pa.float64())),
    "doubles of one length": as_list(pa.list_(pa.float64(), 3)),
    "large texts": lambda path: pq.write_table(
        pq.read_table(path).set_column(0, "id", pa.array([f"é{i}" for i in range(5)], pa.large_string())), path
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_table_that_others_wrote(way: str, tmp_path: Path):
    path = written(tmp_path / "t.parquet")
    WAYS[way](path)
    with Table(path) as table:
        assert (len(table), table.dim) == (5, 3)
        assert np.array_equal(np.concatenate(list(table.embeddings())), ROWS)
        [ids] = [batch.column("id").to_pylist() for batch in table.batches(["id"])]
        assert ids == [f"é{i}" for i in range(5)]


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [1.0]], [[1.0], None], [[1.0, 2.0], [1.0, 2.0, 3.0], [1.0]]])
def test_embeddings_of_several_lengths_are_refused(rows: list, tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": [str(i) for i in range(len(rows))], "embedding": rows}), path)
    with pytest.raises(InputError, match=r"must hold embeddings of one length, \d, in each row"), Table(path) as table:
        list(table.embeddings())
