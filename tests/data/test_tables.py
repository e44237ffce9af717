"""Tables of images: Parquet, Arrow and Hugging Face data sets give the pixels of the files that they hold."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from terminal import refused
from tiny_images import encoded, pixels

from crlf import data
from crlf.data import ImageSettings
from crlf.data.files import decode_cache, tables
from crlf.data.files.decode import decode
from crlf.data.files.shards import look_at
from crlf.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


FILES = [encoded(pixels(seed), "PNG") for seed in range(40)]
LABELS = [seed % 4 for seed in range(40)]
STRUCTS = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(FILES)]


def load(path: Path | str, subset: int = 0, **settings: object) -> tuple[data.ImageSet, data.ImageSet]:
    return data.load(str(path), None, ImageSettings(**settings), subset)  # type: ignore[arg-type]


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def ipc(path: Path, columns: dict[str, Any], stream: bool = False, **options: Any) -> Path:
    table = pa.table(columns)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


def images_of(split: data.ImageSet) -> list[bytes]:
    """The files whose pixels the rows hold."""
    known = {decode(content, 32).tobytes(): content for content in FILES}
    return [known[row.numpy().tobytes()] for row in split.images]


# Every form holds the same pixels, in the order of the rows

COMPRESSED = {"options": pa.ipc.IpcWriteOptions(compression="zstd")}
FORMS: dict[str, Callable[[Path], Path]] = {
    "structs": lambda d: parquet(d / "a.parquet", {"image": STRUCTS}),
    "bytes": lambda d: parquet(d / "a.pq", {"n": list(range(40)), "jpg": FILES}),
    "small row groups": lambda d: parquet(d / "a.parquet", {"image": STRUCTS}, row_group_size=3),
    "large bytes": lambda d: parquet(d / "a.parquet", {"image": pa.array(FILES, pa.large_binary())}),
    "arrow": lambda d: ipc(d / "a.arrow", {"image": STRUCTS}),
    "arrow, compressed": lambda d: ipc(d / "a.feather", {"other": FILES[::-1], "image": STRUCTS}, **COMPRESSED),
    "arrow, streamed": lambda d: ipc(d / "a.arrow", {"text": ["x"] * 40, "image": STRUCTS}, stream=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_files_in_order(form: str, tmp_path: Path):
    path = FORMS[form](tmp_path)
    train, test = load(path)
    assert images_of(train) == FILES and len(test) == 0 and train.labels is None
    assert list(train.ids) == [f"{path.name}/{row:05}" for row in range(40)]


@pytest.mark.parametrize("form", FORMS)
def test_reading_may_begin_at_any_row(form: str, tmp_path: Path):
    path = FORMS[form](tmp_path)
    name = "jpg" if form == "bytes" else "image"
    rows = tables.Rows([look_at(path), look_at(path)], name)
    for start, stop in [(0, 5), (5, 9), (38, 43), (79, 80), (20, 40), (40, 80), (3, 3)]:
        assert [file.data for file in rows.read(start, stop)] == (FILES * 2)[start:stop]


def test_paths_are_files_beside_the_table(tmp_path: Path):
    names = [f"Grüße {i}/{'n' * 200}.png" for i in range(40)]
    for name, content in zip(names, FILES, strict=True):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    for column in (names, [{"bytes": None, "path": name} for name in names]):
        path = parquet(tmp_path / "a.parquet", {"note": ["x"] * 40, "file": column})
        train, _ = load(path)
        assert images_of(train) == FILES and list(train.ids) == names
    (tmp_path / names[0]).write_bytes(FILES[1])  # the table is as it was, the file is not
    assert images_of(load(path)[0])[0] == FILES[1]


def test_a_row_without_bytes_is_skipped_and_listed(tmp_path: Path, cache: Path):
    cells = [{"bytes": None, "path": None}, *STRUCTS[1:], None]
    path = parquet(tmp_path / "a.parquet", {"image": cells})
    train, _ = load(path)
    assert images_of(train) == FILES[1:]
    [table] = cache.rglob("skipped.csv")
    assert table.read_text().splitlines()[1:] == [f"a.parquet/{row:05},its cell is empty" for row in (0, 40)]


def test_shards_follow_each_other_by_name(tmp_path: Path):
    for i in (1, 0):
        parquet(tmp_path / "data" / f"part-{i:05}-of-00002.parquet", {"image": STRUCTS[20 * i : 20 * i + 20]})
    (tmp_path / "README.md").write_text("hi")
    (tmp_path / "cache-12ab.arrow").write_bytes(b"what datasets computed once")
    assert images_of(load(tmp_path)[0]) == FILES


def test_a_second_load_decodes_nothing_and_a_changed_table_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = parquet(tmp_path / "a.parquet", {"image": STRUCTS})
    calls: list[int] = []
    monkeypatch.setattr(decode_cache, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    load(path)
    assert len(calls) == 40
    load(path)
    assert len(calls) == 40
    parquet(path, {"image": STRUCTS[::-1]})
    assert images_of(load(path)[0]) == FILES[::-1] and len(calls) == 80


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = parquet(tmp_path / "a.parquet", {"image": STRUCTS}, row_group_size=7)
    monkeypatch.setattr(decode_cache, "BATCH", 8)
    calls: list[int] = []

    def dying(*arguments: Any) -> np.ndarray:
        if len(calls) == 20:
            raise KeyboardInterrupt
        calls.append(1)
        return decode(*arguments)

    with monkeypatch.context() as killing:
        killing.setattr(decode_cache, "decode", dying)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    calls.clear()
    monkeypatch.setattr(decode_cache, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    assert images_of(load(path)[0]) == FILES and len(calls) == 24


# Labels and splits


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (LABELS, ("0", "1", "2", "3")),
        (["dcba"[label] for label in LABELS], ("a", "b", "c", "d")),
        (pa.array(["dcba"[label] for label in LABELS]).dictionary_encode(), ("a", "b", "c", "d")),
        ([label > 1 for label in LABELS], ("False", "True")),
    ],
)
def test_labels_are_for_evaluation_and_a_tenth_is_held_out(tmp_path: Path, column: Any, classes: tuple[str, ...]):
    train, test = load(parquet(tmp_path / "a.parquet", {"image": STRUCTS, "label": column}), hold_out=0.1)
    texts = [str(value) for value in (column.to_pylist() if isinstance(column, pa.Array) else column)]
    assert train.classes == test.classes == classes
    assert len(train) + len(test) == 40 and set(test.labels.tolist()) == set(range(len(classes)))
    assert not set(train.ids) & set(test.ids)
    for part in (train, test):
        for name, label, content in zip(part.ids, part.labels, images_of(part), strict=True):
            row = int(name[-5:])
            assert content == FILES[row] and part.classes[label] == texts[row]


@pytest.mark.parametrize("missing", [None, -1])
def test_labels_that_are_hidden_are_none(tmp_path: Path, missing: int | None, capsys: pytest.CaptureFixture[str]):
    """All of them; where some are hidden see test_missing_labels."""
    path = parquet(tmp_path / "a.parquet", {"image": STRUCTS, "label": pa.array([missing] * 40, pa.int64())})
    train, test = load(path)
    assert train.labels is None and len(train) == 40 and len(test) == 0
    assert "column 'label' is not used: all of its 40 labels are missing" in capsys.readouterr().err


@pytest.mark.parametrize("test_name", ["test-00000-of-00001.parquet", "validation.parquet", "val/x.parquet"])
def test_a_test_split_is_the_test_set(tmp_path: Path, test_name: str):
    parquet(tmp_path / "train-00000-of-00001.parquet", {"image": STRUCTS[:30], "label": LABELS[:30]})
    parquet(tmp_path / test_name, {"image": STRUCTS[30:], "label": LABELS[30:]})
    train, test = load(tmp_path)
    assert images_of(train) == FILES[:30] and train.labels.tolist() == LABELS[:30]
    assert images_of(test) == FILES[30:] and test.labels.tolist() == LABELS[30:]


def test_validation_images_are_left_alone_where_there_are_test_images(tmp_path: Path):
    for name, part in (("train", slice(0, 20)), ("validation", slice(20, 30)), ("test", slice(30, 40))):
        parquet(tmp_path / f"{name}.parquet", {"image": STRUCTS[part], "label": LABELS[part]})
    train, test = load(tmp_path)
    assert images_of(train) == FILES[:20] and images_of(test) == FILES[30:]


@pytest.mark.parametrize("broken", [(), (2,), (0, 4, 33)])
@pytest.mark.parametrize("subset", [0, 6])
def test_labels_stay_with_their_images_in_a_subset_and_behind_rows_that_are_skipped(
    tmp_path: Path, broken: tuple[int, ...], subset: int
):
    cells = [b"no image" if row in broken else content for row, content in enumerate(FILES)]
    for name, part in (("train", slice(0, 30)), ("test", slice(30, 40))):
        parquet(tmp_path / f"{name}.parquet", {"image": cells[part], "label": LABELS[part]})
    for found, rows in zip(load(tmp_path, subset, max_skipped=0.5), (range(30), range(30, 40)), strict=True):
        kept = [row for row in rows if row not in broken][: subset or None]
        assert images_of(found) == [FILES[row] for row in kept]
        assert found.labels.tolist() == [LABELS[row] for row in kept]


@pytest.mark.parametrize("subset", [0, 7])
def test_labels_stay_with_their_images_in_a_subset_of_one_table(tmp_path: Path, subset: int):
    """A tenth of each class is held out of more rows than are asked for, and both parts are cut."""
    labels = np.random.default_rng(1).permutation(LABELS).tolist()
    path = parquet(tmp_path / "a.parquet", {"image": STRUCTS, "label": labels})
    for part, most in zip(load(path, subset, hold_out=0.1), (subset or 40, subset or 40), strict=True):
        rows = [int(name[-5:]) for name in part.ids]
        assert 0 < len(part) <= most and images_of(part) == [FILES[row] for row in rows]
        assert part.labels.tolist() == [labels[row] for row in rows]


def test_columns_can_be_named(tmp_path: Path):
    columns = {"left": FILES, "right": FILES[::-1], "label": LABELS, "colour": ["ab"[i % 2] for i in range(40)]}
    path = parquet(tmp_path / "a.parquet", columns)
    train, test = load(path, image_column="right", label_column="colour")
    by_row = dict(zip([*train.ids, *test.ids], [*images_of(train), *images_of(test)], strict=True))
    assert [by_row[f"a.parquet/{row:05}"] for row in range(40)] == FILES[::-1] and train.classes == ("a", "b")


def test_a_subset_decodes_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet(tmp_path / "train.parquet", {"image": STRUCTS[:30], "label": LABELS[:30]})
    parquet(tmp_path / "test.parquet", {"image": STRUCTS[30:], "label": LABELS[30:]})
    calls: list[int] = []
    monkeypatch.setattr(decode_cache, "decode", lambda *arguments: calls.append(1) or decode(*arguments))
    train, test = load(tmp_path, subset=6)
    assert images_of(train) == FILES[:6] and images_of(test) == FILES[30:36] and len(calls) == 12
    assert torch.equal(load(tmp_path)[0].first(6).images, train.images)


# Hugging Face's library


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()


def made(offline: None) -> Any:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["d", "c", "b", "a"])})
    parts = {"train": slice(0, 30), "test": slice(30, 40)}
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"img": STRUCTS[part], "kind": LABELS[part]}, features=features)
            for name, part in parts.items()
        }
    )


def as_made(train: data.ImageSet, test: data.ImageSet) -> None:
    assert images_of(train) == FILES[:30] and images_of(test) == FILES[30:]
    assert train.classes == test.classes == ("d", "c", "b", "a")
    assert train.labels.tolist() == LABELS[:30] and test.labels.tolist() == LABELS[30:]


def test_a_saved_data_set_is_a_folder_of_shards(tmp_path: Path, offline: None):
    made(offline).save_to_disk(tmp_path / "saved")
    as_made(*load(tmp_path / "saved"))


def test_a_data_set_by_name(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch):
    for name, part in made(offline).items():
        (tmp_path / "my set" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / "my set" / "data" / f"{name}-00000-of-00001.parquet")
    as_made(*load(tmp_path / "my set"))
    monkeypatch.chdir(tmp_path)
    assert data.named("hf:my set") == f"hf:{tmp_path / 'my set'}"  # a run is used from other folders too
    as_made(*load("hf:my set"))
    as_made(*load("hf:my set:default"))


def test_a_name_that_is_not_there(tmp_path: Path, offline: None):
    line = refused("pretrain", "hf:no/such", "--out", str(tmp_path / "run"), alone=False)
    assert "data 'hf:no/such' cannot be loaded: " in line and not (tmp_path / "run").exists()


# Bad input


def spoiled(path: Path) -> Path:
    content = parquet(path, {"image": STRUCTS}, compression="none").read_bytes()
    path.write_bytes(content[:200] + b"x" * 20_000 + content[20_200:])
    return path


BAD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "damaged parquet": (lambda d: (d / "a.parquet").write_bytes(b"PAR1 and no more"), ["a.parquet"],
                        "'a.parquet' cannot be read: "),
    "damaged arrow": (lambda d: (d / "a.arrow").write_bytes(b"ARROW1\0\0 and no more"), ["a.arrow"],
                      "'a.arrow' cannot be read: "),
    "damaged pages": (lambda d: spoiled(d / "a.parquet"), ["a.parquet"], "a.parquet' cannot be read: "),
    "empty": (lambda d: parquet(d / "a.parquet", {"image": pa.array([], pa.binary())}), ["a.parquet"],
              "data 'a.parquet' cannot be used: it has no rows"),
    "no image": (lambda d: parquet(d / "a.parquet", {"image": [b"text"] * 3}), ["a.parquet"],
                 "none of 3 files is an image; the first is 'a.parquet/00000': it is no JPEG"),
    "no column": (lambda d: parquet(d / "a.parquet", {"n": [1], "text": ["x"]}), ["a.parquet"],
                  "'a.parquet' has no column of images among n, text: --image-column can name one"),
    "several columns": (lambda d: parquet(d / "a.parquet", {"a": FILES, "b": FILES}), ["a.parquet"],
                        "has several columns of images, a, b: --image-column can name one"),
    "unknown column": (lambda d: parquet(d / "a.parquet", {"image": FILES}), ["a.parquet", "--image-column", "imag"],
                       "'imag' is not known: choose from image. Did you mean 'image'?"),
    "column of numbers": (lambda d: parquet(d / "a.parquet", {"n": [1]}), ["a.parquet", "--image-column", "n"],
                          "column 'n' of 'a.parquet' must hold bytes, structs of bytes and path, or paths, not int64"),
    "unknown labels": (lambda d: parquet(d / "a.parquet", {"image": FILES}), ["a.parquet", "--label-column", "y"],
                       "label_column of 'a.parquet', 'y' is not known: choose from image"),
    "labels of fractions": (lambda d: parquet(d / "a.parquet", {"image": FILES, "y": [0.5] * 40}),
                            ["a.parquet", "--label-column", "y"],
                            "column 'y' of 'a.parquet' must hold whole numbers or texts, not double"),
    "shards of two kinds": (lambda d: [parquet(d / "f" / f"{n}.parquet", {n: FILES}) for n in "ab"], ["./f"],
                            "must be binary, as in the first shard, not missing"),
    "a column of a folder": (lambda d: [(d / "f").mkdir(), (d / "f" / "a.png").write_bytes(FILES[0])],
                             ["./f", "--label-column", "y"], "label_column is for tables (.parquet, .arrow, .csv, "),
    "hf of nothing": (lambda d: None, ["hf:"], "data 'hf:' must be hf:NAME or hf:NAME:CONFIG"),
    "hf of half a configuration": (lambda d: None, ["hf:x:"], "must be hf:NAME or hf:NAME:CONFIG"),
    "missing": (lambda d: None, ["a.parquet"], "'a.parquet' does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make, arguments, reason = BAD[case]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = refused("pretrain", *arguments, "--out", "run", alone=False).replace(f"{tmp_path}{os.sep}", "")
    assert line.startswith("crlf pretrain: error: ") and reason in line
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'crlf\[hf\]'"):
        load("hf:x")
