"""Embeddings as one Parquet table: one row per image, with its name, so that rows and names cannot get out of step.

| column    | type                      | holds                                              |
|-----------|---------------------------|----------------------------------------------------|
| id        | string                    | the image's name, for files the relative path      |
| split     | string or null            | train or test; null for images that are new, or    |
|           |                           | have no label where others have one                |
| label     | int64 or null             | null where there is none                           |
| class     | string or null            | the label's name                                   |
| embedding | fixed_size_list<float>[D] | the output of the frozen encoder                   |

The metadata entry `crlf.source` names the source of the images. Tables are written and read in groups of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from crlf.errors import InputError, first_line
from crlf.runs.files import replacing

COLUMNS = ("id", "split", "label", "class", "embedding")
SOURCE = b"crlf.source"
GROUP = 2048  # rows in a group, except the last; a reader loads one group at a time


class Writer:
    """Writes embeddings to an open file batch by batch, in order. Leaving its `with` block finishes the file.

    Args:
        file: the binary file to write to.
        dim: D, the length of an embedding.
        source: the source of the images.
    """

    def __init__(self, file: IO[bytes], dim: int, source: str):
        import pyarrow as pa  # takes 0.2 s to import
        import pyarrow.parquet as pq

        fields = [("id", pa.string()), ("split", pa.string()), ("label", pa.int64()), ("class", pa.string())]
        self.schema = pa.schema(
            [*fields, ("embedding", pa.list_(pa.float32(), dim))], metadata={SOURCE: text(source).encode()}
        )
        # Floats hardly shrink: zstd takes a tenth off and doubles the time.
        codecs = dict.fromkeys(COLUMNS[:4], "zstd") | {"embedding.list.element": "none"}
        self.writer = pq.ParquetWriter(
            file, self.schema, compression=codecs, use_dictionary=list(COLUMNS[1:4]), write_statistics=list(COLUMNS[:4])
        )
        self.dim, self.rows = dim, 0
        # The rows of a group are copied to one block: many small arrays among the large ones would fragment the memory.
        self.block = np.empty((GROUP, dim), np.float32)
        self.told: list[tuple[str, str | None, int | None, str | None]] = []  # id, split, label, class of these rows

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        self.writer.close()

    def add(
        self,
        ids: Sequence[str],
        embeddings: np.ndarray,
        split: str | None = None,
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Write rows.

        Args:
            ids: the names of n images.
            embeddings: float32 (n, D).
            split: the split of all n images.
            labels: int64 (n,), or None without labels.
            classes: the names of the labels.
        """
        assert embeddings.dtype == np.float32 and embeddings.shape == (len(ids), self.dim), embeddings.shape
        numbers = [None] * len(ids) if labels is None else labels.tolist()
        names = [None if number is None else text(classes[number]) for number in numbers]
        self.append(zip(map(text, ids), [split] * len(ids), numbers, names, strict=True), embeddings)

    def keep(self, batch: Any) -> None:
        """Write a record batch of this schema."""
        told = zip(*(batch.column(name).to_pylist() for name in COLUMNS[:4]), strict=True)
        self.append(told, matrix(batch.column("embedding"), self.dim))

    def append(self, told: Iterable[Any], embeddings: np.ndarray) -> None:
        """Collect rows, and write them once they fill a group."""
        self.rows += len(embeddings)
        for one, row in zip(told, embeddings, strict=True):
            self.block[len(self.told)] = row
            self.told.append(one)
            if len(self.told) == len(self.block):
                self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self.told:
            count = len(self.told)
            values = zip(*self.told, strict=True)
            columns = [pa.array(value, field.type) for value, field in zip(values, self.schema, strict=False)]
            rows = pa.FixedSizeListArray.from_arrays(pa.array(self.block[:count].reshape(-1)), self.dim)
            self.writer.write_table(pa.Table.from_arrays([*columns, rows], schema=self.schema), row_group_size=count)
        self.told = []


def text(name: str) -> str:
    """A name that UTF-8 can encode: invalid bytes of a file name are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


class Table:
    """A table of embeddings opened for reading, as written by `Writer` or rewritten by pandas or polars, which may
    change the type of the ids and of the lists.

    Raises:
        InputError: the file is missing, is not Parquet, or lacks the columns `id` and `embedding`, a list of D numbers.
    """

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            self.file = pq.ParquetFile(path, memory_map=True)
        except FileNotFoundError as error:
            raise InputError(f"table {str(path)!r} does not exist") from error
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"table {str(path)!r} cannot be read as Parquet: {first_line(error)}") from error
        schema = self.file.schema_arrow
        embedding = schema.field("embedding").type if "embedding" in schema.names else pa.null()
        if "id" not in schema.names or not holds_numbers(embedding):
            columns = ", ".join(schema.names[:8])
            rule = "must have a column id and a column embedding, fixed_size_list<float>"
            raise InputError(f"table {str(path)!r} {rule}, not {columns}: `crlf embed` writes such tables")
        self.dim: int = embedding.list_size if pa.types.is_fixed_size_list(embedding) else self.first_length()
        self.columns = [name for name in COLUMNS if name in schema.names]
        self.source = (schema.metadata or {}).get(SOURCE, b"").decode()

    def first_length(self) -> int:
        """The length of the first embedding, if the type does not give it."""
        first = next(iter(self.file.iter_batches(1, columns=["embedding"])), None)
        return len(first.column(0)[0].as_py() or ()) if first is not None else 0

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Its record batches, in order, at most `GROUP` rows each."""
        try:
            yield from self.file.iter_batches(GROUP, columns=list(columns or self.columns))
        except OSError as error:  # pyarrow's name for damage as well
            raise InputError(f"table {str(self.path)!r} cannot be read: {first_line(error)}") from error

    def embeddings(self) -> Iterator[np.ndarray]:
        """Its embeddings, in order: float32 (n, D) at a time."""
        for batch in self.batches(["embedding"]):
            rows = matrix(batch.column("embedding"), self.dim)
            if len(rows) != batch.num_rows:
                raise InputError(
                    f"table {str(self.path)!r} must hold embeddings of one length, {self.dim}, in each row"
                )
            yield rows


def holds_numbers(kind: Any) -> bool:
    """Whether a type is lists of numbers."""
    import pyarrow.types as of

    listed = of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind)
    return listed and (of.is_floating(kind.value_type) or of.is_integer(kind.value_type))


def matrix(column: Any, dim: int) -> np.ndarray:
    """A column of embeddings as float32 (n, D); without rows if an embedding is missing or has another length."""
    flat = column.flatten().to_numpy(zero_copy_only=False)
    even = column.null_count == 0 and len(flat) == len(column) * dim
    even = even and set(column.value_lengths().unique().to_pylist()) <= {dim}
    return flat.reshape(-1, dim).astype(np.float32, copy=False) if even else np.empty((0, dim), np.float32)


def join(parts: Sequence[Path], out: Path) -> int:
    """Join tables in order into one, and write their embeddings to a .npy file beside it.

    Returns:
        The number of rows.
    """
    with contextlib.ExitStack() as stack:
        tables = [stack.enter_context(Table(part)) for part in parts]
        rows, first = sum(map(len, tables)), tables[0]
        file, array = (stack.enter_context(replacing(path)) for path in (out, out.with_suffix(".npy")))
        head = {"descr": "<f4", "fortran_order": False, "shape": (rows, first.dim)}
        np.lib.format.write_array_header_1_0(array, head)
        with Writer(file, first.dim, first.source) as writer:
            for table in tables:
                for batch in table.batches():
                    writer.keep(batch)
                    array.write(matrix(batch.column("embedding"), first.dim).astype("<f4", copy=False).tobytes())
    return rows
