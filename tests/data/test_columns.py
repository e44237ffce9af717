"""Every type that pyarrow, pandas and polars write for images and labels; a column that is not used is named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from terminal import refused
from tiny_images import encoded, pixels

from crlf import data
from crlf.data import ImageSettings
from crlf.data.files.decode import decode

pl = pytest.importorskip("polars")
pytestmark = pytest.mark.usefixtures("cache")

COUNT = 12
ARRAYS = [np.asarray(pixels(seed, 16, 16)) for seed in range(COUNT)]
FILES = [encoded(pixels(seed, 16, 16), "PNG") for seed in range(COUNT)]
TEXTS = ["ab"[i % 2] for i in range(COUNT)]
NUMBERS = [i % 2 for i in range(COUNT)]
STRUCTS = [{"bytes": content, "path": None} for content in FILES]


def padded() -> pa.Array:
    longest = max(map(len, FILES))
    return pa.array([content.ljust(longest, b"\0") for content in FILES], pa.binary(longest))


def tensors() -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(ARRAYS))


def struct(kind: pa.DataType) -> pa.Array:
    return pa.array(STRUCTS, pa.struct([("bytes", kind), ("path", pa.string())]))


IMAGES: dict[str, Callable[[], Any]] = {
    "binary": lambda: pa.array(FILES, pa.binary()),
    "large binary": lambda: pa.array(FILES, pa.large_binary()),
    "binary view": lambda: pa.array(FILES, pa.binary_view()),
    "fixed-size binary": padded,
    "dictionary": lambda: pa.array(FILES, pa.binary()).dictionary_encode(),
    "struct": lambda: struct(pa.binary()),
    "struct of large binary": lambda: struct(pa.large_binary()),
    "struct of a view": lambda: struct(pa.binary_view()),
    "lists of bytes": lambda: pa.array([list(content) for content in FILES], pa.list_(pa.uint8())),
    "large lists of bytes": lambda: pa.array([list(content) for content in FILES], pa.large_list(pa.uint8())),
    "rows of pixels": lambda: pa.array([array.tolist() for array in ARRAYS], pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "channels first": lambda: pa.array(
        [array.transpose(2, 0, 1).tolist() for array in ARRAYS], pa.list_(pa.list_(pa.list_(pa.uint8())))
    ),
    "tensors": tensors,
}  # fmt: skip


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path)
    return path


def loaded(path: Path, **settings: Any) -> tuple[data.ImageSet, data.ImageSet]:
    return data.load(str(path), None, ImageSettings(image_size=16, **{"hold_out": 0.1, **settings}))


def check_images(path: Path) -> None:
    parts = loaded(path)
    found = {name: image for part in parts for name, image in zip(part.ids, part.images, strict=True)}
    assert len(found) == COUNT
    for row, name in enumerate(sorted(found)):
        assert np.array_equal(found[name].numpy(), ARRAYS[row].transpose(2, 0, 1)), row


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_type(kind: str, suffix: str, tmp_path: Path):
    check_images(write(tmp_path / f"a{suffix}", {"n": NUMBERS, "picture": IMAGES[kind]()}))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_paths_of_every_type(kind: Any, tmp_path: Path):
    names = [f"{i:02}.png" for i in range(COUNT)]
    for name, content in zip(names, FILES, strict=True):
        (tmp_path / name).write_bytes(content)
    column = pa.array(names).dictionary_encode() if kind == "dictionary" else pa.array(names, kind)
    check_images(write(tmp_path / "a.parquet", {"file": column, "note": ["x"] * COUNT}))


LABELS: dict[str, tuple[Callable[[], Any], tuple[str, str]]] = {
    **{str(kind): (lambda kind=kind: pa.array(NUMBERS, kind), ("0", "1"))
       for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(),
                    pa.float64())},
    **{str(kind): (lambda kind=kind: pa.array(TEXTS, kind), ("a", "b"))
       for kind in (pa.string(), pa.large_string(), pa.string_view())},
    "half float": (lambda: pa.array(np.array(NUMBERS, np.float16)), ("0", "1")),
    "bool": (lambda: pa.array([bool(n) for n in NUMBERS]), ("False", "True")),
    "binary": (lambda: pa.array([t.encode() for t in TEXTS]), ("a", "b")),
    "decimal": (lambda: pa.array([Decimal(n) for n in NUMBERS], pa.decimal128(5, 2)), ("0", "1")),
    "dictionary of texts": (lambda: pa.array(TEXTS).dictionary_encode(), ("a", "b")),
    "dictionary of numbers": (lambda: pa.array(NUMBERS).dictionary_encode(), ("0", "1")),
    "dictionary of large texts": (lambda: pa.array(TEXTS, pa.large_string()).dictionary_encode(), ("a", "b")),
}  # fmt: skip


def check_labels(path: Path, classes: tuple[str, ...], **settings: Any) -> None:
    train, test = loaded(path, **settings)
    assert train.classes == test.classes == classes and len(train) + len(test) == COUNT and len(test) == 2
    for part in (train, test):
        assert [int(name[-5:]) % 2 for name in part.ids] == part.labels.tolist()


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type(kind: str, tmp_path: Path):
    make, classes = LABELS[kind]
    check_labels(write(tmp_path / "a.parquet", {"image": FILES, "label": make()}), classes)


@pytest.mark.parametrize("name", ["label", "Label", "LABELS", "class"])
def test_a_column_is_called_a_label_in_any_case(name: str, tmp_path: Path):
    check_labels(write(tmp_path / "a.parquet", {"image": FILES, name: TEXTS}), ("a", "b"))


def test_runs_of_equal_labels(tmp_path: Path):
    column = pa.compute.run_end_encode(pa.array(NUMBERS))
    check_labels(write(tmp_path / "a.arrow", {"image": FILES, "label": column}), ("0", "1"))


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
@pytest.mark.parametrize(
    "kind", ["int64", "Int64", "float64", "string", "category", "object", "boolean", "int category"]
)
def test_what_pandas_writes(kind: str, suffix: str, tmp_path: Path):
    texts = kind in ("string", "category", "object")
    values = TEXTS if texts else NUMBERS
    column = pd.Series(values).astype("category" if "category" in kind else kind)
    frame, path = pd.DataFrame({"image": FILES, "label": column}), tmp_path / f"a{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_feather(path)
    check_labels(path, ("a", "b") if texts else ("False", "True") if kind == "boolean" else ("0", "1"))
    check_images(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["int", "float", "text", "categorical", "enum", "bool"])
def test_what_polars_writes(kind: str, suffix: str, tmp_path: Path):
    kinds = {"int": pl.Int8, "float": pl.Float32, "text": pl.String, "categorical": pl.Categorical,
             "enum": pl.Enum(["b", "a"]), "bool": pl.Boolean}  # fmt: skip
    texts = kind in ("text", "categorical", "enum")
    values = TEXTS if texts else [bool(n) for n in NUMBERS] if kind == "bool" else NUMBERS
    frame = pl.DataFrame({"image": FILES, "label": pl.Series(values).cast(kinds[kind])})
    path = tmp_path / f"a{suffix}"
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_ipc(path)
    check_labels(path, ("a", "b") if texts else ("False", "True") if kind == "bool" else ("0", "1"))
    check_images(path)


def test_structs_of_polars(tmp_path: Path):
    pl.DataFrame({"image": STRUCTS}).write_parquet(tmp_path / "a.parquet")
    check_images(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["list of ints", "int64 array", "rows of pixels"])
def test_lists_of_whole_numbers_of_pandas(name: str, tmp_path: Path):
    """It makes int64 of Python's own, whatever they are."""
    columns = {
        "list of ints": [list(file) for file in FILES],
        "int64 array": [np.frombuffer(file, np.uint8).astype(np.int64) for file in FILES],
        "rows of pixels": [array.tolist() for array in ARRAYS],
    }
    boxes = [[[1, 2], [300, 40], [5, 60], [70, 8], [9, 9]]] * COUNT  # a polygon
    frame = pd.DataFrame({"outline": boxes, "box": [[1, 2, 30, 40]] * COUNT, "image": columns[name], "label": NUMBERS})
    frame.to_parquet(tmp_path / "a.parquet")
    check_images(tmp_path / "a.parquet")


REASONS = {
    "fractions": (pa.array([0.5] * COUNT), "column 'label' is not used: it holds fractions, such as 0.5"),
    "nothing": (pa.nulls(COUNT), "all of its 12 labels are missing"),
    "not numbers": (pa.array([np.nan] * COUNT, pa.float64()), "all of its 12 labels are missing"),
    "one class, and nothing": (pa.array([3, None] * (COUNT // 2)), "all of its labels are the same"),
    "one class": (pa.array([3] * COUNT), "column 'label' is not used: all of its labels are the same"),
    "dates": (pa.array([date(2020, 1, 1)] * COUNT), "it must hold whole numbers or texts, not date32[day]"),
    "lists": (pa.array([[1, 2]] * COUNT), "it must hold whole numbers or texts, not list<"),
    "bytes": (pa.array([b"\xff"] * COUNT), "it holds bytes that are no text"),
    "infinite": (pa.array([np.inf, *NUMBERS[1:]], pa.float64()), "it holds fractions, such as inf"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_column_of_labels_that_is_not_used_says_why(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    column, reason = REASONS[name]
    train, test = loaded(write(tmp_path / "a.parquet", {"image": STRUCTS, "label": column}))
    assert train.labels is None and len(train) == COUNT and not len(test)
    said = capsys.readouterr().err
    assert "column 'label' is not used" in said and reason in said


def test_other_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    loaded(write(tmp_path / "a.parquet", {"image": STRUCTS, "label": TEXTS, "width": NUMBERS, "note": TEXTS}))
    assert "columns 'width', 'note' not used: neither images nor named as a label" in capsys.readouterr().err


def test_a_usable_column_is_taken_before_one_that_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "a.parquet", {"image": STRUCTS, "label": [[1]] * COUNT, "class": TEXTS})
    check_labels(path, ("a", "b"))
    assert "column 'label' is not used: it must hold whole numbers or texts, not list<" in capsys.readouterr().err


def test_no_labels_takes_no_column(tmp_path: Path):
    train, test = loaded(write(tmp_path / "a.parquet", {"image": STRUCTS, "label": TEXTS}), labels=False)
    assert train.labels is None and len(train) == COUNT and not len(test)


def test_shards_of_like_types(tmp_path: Path):
    write(tmp_path / "a.parquet", {"image": pa.array(FILES[:6]), "label": pa.array(TEXTS[:6])})
    large = {"image": pa.array(FILES[6:], pa.large_binary()), "label": pa.array(TEXTS[6:], pa.large_string())}
    write(tmp_path / "b.parquet", large)
    train, test = loaded(tmp_path)
    assert train.classes == ("a", "b") and len(train) + len(test) == COUNT


def test_wanted_labels_of_fractions_are_an_error(tmp_path: Path):
    path = write(tmp_path / "a.parquet", {"image": STRUCTS, "y": [0.5] * COUNT})
    line = refused("pretrain", str(path), "--label-column", "y", "--out", str(tmp_path / "run"))
    assert "column 'y'" in line and "must hold whole numbers or texts, not double" in line


# Arrays


@pytest.mark.parametrize("labels", [NUMBERS, TEXTS, [float(n) for n in NUMBERS], [bool(n) for n in NUMBERS]])
def test_labels_in_an_npz_file(labels: list, tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=np.stack(ARRAYS), labels=np.array(labels))
    train, test = loaded(tmp_path / "a.npz")
    assert len(train) == 10 and len(test) == 2 and set(test.labels.tolist()) == {0, 1}
    for part in (train, test):
        for name, image, label in zip(part.ids, part.images, part.labels.tolist(), strict=True):
            row = int(name[-5:])
            assert np.array_equal(image.permute(1, 2, 0).numpy(), ARRAYS[row]) and label == row % 2


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(3), "it must be (12,), not (3,)"),
        (np.zeros(COUNT), "they are all the same"),
        (np.array([-1] * COUNT), "all are missing"),
        (np.linspace(0, 1, COUNT), "it must hold whole numbers or texts, not float64"),
    ],
)
def test_labels_in_an_npz_file_that_are_not_used(
    labels: np.ndarray, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "a.npz", images=np.stack(ARRAYS), labels=labels, more=np.zeros(1))
    train, test = loaded(tmp_path / "a.npz")
    assert train.labels is None and len(train) == COUNT and not len(test)
    said = capsys.readouterr().err
    assert "array 'labels' of" in said and reason in said and "not more" in said


def test_feather_of_version_1_or_a_wrong_cell_is_a_reason(tmp_path: Path, cache: Path):
    feather.write_feather(pa.table({"image": FILES}), str(tmp_path / "a.feather"))
    check_images(tmp_path / "a.feather")
    cells = [*[list(content) for content in FILES[1:]], []]
    path = write(tmp_path / "b.parquet", {"image": pa.array(cells, pa.list_(pa.uint8()))})
    assert len(loaded(path)[0]) == COUNT - 1
    assert np.array_equal(loaded(path)[0].images[0].numpy(), decode(FILES[1], 16))
