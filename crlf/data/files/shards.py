"""Reads a Parquet, Arrow or CSV file: its number of rows, its schema, and its values in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crlf.errors import InputError, first_line

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
TEXT = {".csv": ",;\t|", ".tsv": "\t"}  # possible separators; the most frequent one in the first line is used
BINARY = (*PARQUET, *ARROW)
SUFFIXES = (*BINARY, *TEXT)
READ = 64  # rows at a time
UNPACKED = 1 << 28  # bytes that a part of a column may always unpack to
BUFFER = 1 << 20  # bytes of a column that are read ahead, instead of a whole row group


@dataclass(frozen=True)
class Shard:
    """A file of a table."""

    path: Path
    rows: int
    schema: Any
    """A pyarrow.Schema."""
    mark: tuple[str, int, int]
    """Its path, size and time of change."""

    @property
    def name(self) -> str:
        return self.path.name

    def values(self, column: str, start: int = 0) -> Iterator[Any]:
        """The values of a column as Python objects, starting at a row."""
        for batch in self.batches(column, start):
            yield from plain_values(batch)

    def batches(self, column: str, start: int = 0) -> Iterator[Any]:
        """The values of a column as pyarrow arrays of some rows each, starting at a row.

        Raises:
            InputError: the file is damaged.
        """
        with reading(self.path):
            suffix = self.path.suffix.lower()
            parts = in_parquet if suffix in PARQUET else in_csv if suffix in TEXT else in_arrow
            for first, array in parts(self.path, column, start):
                if first + len(array) > start:
                    yield array[max(0, start - first) :]

    def require(self, schema: Any, names: Sequence[str], alike: Callable[[Any], bool]) -> None:
        """Raise InputError unless this shard has these columns with the same or similar types as another shard.

        Types are similar if, for example, one library writes string and another large_string.
        """
        for name in names:
            there = self.schema.field(name).type if name in self.schema.names else None
            if there != schema.field(name).type and not (there is not None and alike(there)):
                raise InputError(
                    f"column {name!r} of {str(self.path)!r} must be {schema.field(name).type}, as in the first shard, "
                    f"not {there or 'missing'}"
                )


def plain_values(array: Any) -> list[Any]:
    """The values of a pyarrow array of any type as Python objects; those of a tensor as numpy arrays."""
    import pyarrow as pa

    if pa.types.is_run_end_encoded(array.type):
        return plain_values(pa.compute.run_end_decode(array))
    if isinstance(array, pa.FixedShapeTensorArray) and not array.null_count:
        return list(array.to_numpy_ndarray())
    return array.storage.to_pylist() if isinstance(array, pa.ExtensionArray) else array.to_pylist()


def look_at(path: Path) -> Shard:
    """The rows and the schema of a file; for a Parquet file, only the end is read.

    Raises:
        InputError: pyarrow is not installed, or the file is damaged.
    """
    with reading(path):
        status = path.stat()
        rows, schema = in_head(path)
    return Shard(path, rows, schema, (str(path.resolve()), status.st_size, status.st_mtime_ns))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        why = "".join(letter if letter.isprintable() else "?" for letter in first_line(error)[:200])
        raise InputError(f"table {str(path)!r} cannot be read: {why}") from error


def in_head(path: Path) -> tuple[int, Any]:
    """The number of rows, and the schema."""
    if path.suffix.lower() in PARQUET:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow
    if path.suffix.lower() in TEXT:
        whole = of_csv(path)
        return whole.num_rows, whole.schema
    with opened(path) as reader:
        return sum(batch.num_rows for batch in arrow_batches(reader)), reader.schema


def in_parquet(path: Path, column: str, start: int) -> Iterator[tuple[int, Any]]:
    """Pieces of a column, each with the number of its first row, without row groups that end before `start`."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=BUFFER) as file:
        require_room(file.metadata, column)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        first = 0
        while sizes and first + sizes[0] <= start:
            first += sizes.pop(0)
        groups = range(file.metadata.num_row_groups - len(sizes), file.metadata.num_row_groups)
        for batch in file.iter_batches(READ, list(groups), columns=[column], use_threads=False) if sizes else ():
            yield first, batch.column(0)
            first += batch.num_rows


def require_room(metadata: Any, column: str) -> None:
    """Raise ValueError for a small file that would fill the memory, since images never compress a hundredfold."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            packed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
            if chunk.path_in_schema.split(".")[0] == column and size > 100 * packed and size > UNPACKED:
                raise ValueError(f"its column {column!r} would grow from {packed:,} to {size:,} bytes")


def of_csv(path: Path) -> Any:
    """Read a whole CSV file, which holds paths and labels but no pixels, as a pyarrow.Table. Empty cells are null."""
    from pyarrow import csv

    with path.open("rb") as file:
        head = file.readline(1 << 16)
    delimiter = max(TEXT[path.suffix.lower()], key=lambda sign: head.count(sign.encode()))
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(null_values=[""], strings_can_be_null=True),
    )


def in_csv(path: Path, column: str, start: int) -> Iterator[tuple[int, Any]]:
    first = 0
    for chunk in of_csv(path).column(column).chunks:
        yield first, chunk
        first += len(chunk)


def in_arrow(path: Path, column: str, start: int) -> Iterator[tuple[int, Any]]:
    first = 0
    with opened(path, column) as reader:
        for batch in arrow_batches(reader):
            for part in range(0, batch.num_rows, READ):
                yield first + part, batch.column(column)[part : part + READ]
            first += batch.num_rows


@contextlib.contextmanager
def opened(path: Path, column: str | None = None) -> Iterator[Any]:
    """A reader for both forms of Arrow files: with an index at the end, or a stream, as `datasets` writes."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        kind = pyarrow.ipc.open_file if source.read(6) == b"ARROW1" else pyarrow.ipc.open_stream
        source.seek(0)
        reader = kind(source)
        if column is not None:  # the others may be large, and compressed
            source.seek(0)
            wanted = [reader.schema.get_field_index(column)]
            reader = kind(source, options=pyarrow.ipc.IpcReadOptions(included_fields=wanted))
        yield reader


def arrow_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)
