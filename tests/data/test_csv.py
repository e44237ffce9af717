"""CSV files of paths and labels, as pandas, polars and people write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from terminal import refused

from crlf import data
from crlf.data import ImageSettings

COUNT = 12
ARRAYS = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
NAMES = [f"images/{i} ü, é.png" for i in range(COUNT)]
LABELS = [None if i % 4 == 3 else "ab"[i % 2] for i in range(COUNT)]
FRAME = {"file": NAMES, "label": LABELS}
FLOATS = {"file": NAMES, "label": [np.nan if name is None else float("ab".index(name)) for name in LABELS]}
WRITERS: dict[str, Callable[[Path], object]] = {
    "pandas.csv": lambda path: pd.DataFrame(FRAME).to_csv(path, index=False),
    "its index.csv": lambda path: pd.DataFrame(FRAME).to_csv(path),
    "semicolons.csv": lambda path: pd.DataFrame(FRAME).to_csv(path, sep=";", index=False),
    "from a spreadsheet.csv": lambda path: pd.DataFrame(FRAME).to_csv(path, sep=";", encoding="utf-8-sig", index=False),
    "floats.csv": lambda path: pd.DataFrame(FLOATS).to_csv(path, index=False),
    "polars.CSV": lambda path: pl.DataFrame(FRAME).write_csv(path),
    "tabs.tsv": lambda path: pl.DataFrame(FRAME).write_csv(path, separator="\t"),
    "quoted.csv": lambda path: pl.DataFrame(FRAME).write_csv(path, quote_style="always"),
}

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, array in zip(NAMES, ARRAYS, strict=True):
        Image.fromarray(array).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_images_and_labels_are_those_of_the_rows(name: str, folder: Path):
    WRITERS[name](folder / name)
    parts = data.load_parts(str(folder / name), None, ImageSettings(image_size=16))
    train, rest = parts["train"], parts["unlabelled"]
    assert train.classes == (("0", "1") if name == "floats.csv" else ("a", "b")) and parts["test"] is train
    rows = [NAMES.index(row) for row in train.ids]
    assert train.labels.tolist() == [row % 2 for row in rows]
    assert list(rest.ids) == [NAMES[row] for row in (3, 7, 11)]
    for row, image in zip([*rows, 3, 7, 11], [*train.images, *rest.images], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), ARRAYS[row])


def test_a_csv_file_beside_images_is_a_sidecar(folder: Path, capsys: pytest.CaptureFixture[str]):
    WRITERS["pandas.csv"](folder / "images" / "labels.csv")
    train, _ = data.load(str(folder / "images"), None, ImageSettings(max_skipped=0))
    assert len(train) == COUNT and train.labels is None
    assert "other files: 1 × .csv" in capsys.readouterr().err


def test_a_first_file_that_is_gone_takes_no_names_away(folder: Path):
    (folder / "a.csv").write_text("\n".join(["file", "gone.png", *(f'"{name}"' for name in NAMES)]), encoding="utf-8")
    train, _ = data.load(str(folder / "a.csv"))
    assert list(train.ids) == NAMES


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "cannot be read: Empty CSV file"),
    (b"file,label\n", "it has no rows"),
    (b"file,label\na.png,b\nc.png,d,e\n", "cannot be read: CSV parse error: Expected 2 columns, got 3"),
    (b"a,b\n1,2\n", "has no column of images among a, b: --image-column can name one"),
    (b"file,label\nnone.png,a\nnone.png,b\n", "none of 2 files is an image"),
    (b"\0\1\2\x1b[31m,\n\3", "a.csv"),
])  # fmt: skip
def test_what_is_no_table_is_one_line(content: bytes, reason: str, tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(content)
    line = refused("pretrain", str(tmp_path / "a.csv"), "--out", str(tmp_path / "run"), alone=False)
    assert reason in line and line.isprintable()
