"""Images without a label beside others that have one are learned from; and why there are no labels is said truly."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from terminal import refused

import crlf
from crlf import data
from crlf.data import PUBLISHED, ImageSettings
from crlf.data.files.class_folders import arrange, lacking
from crlf.data.files.layout import layout
from crlf.evaluation import labelled
from crlf.recipe import Recipe
from crlf.runs.run import Run

COUNT = 24
ARRAYS = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
LABELS = [None if i % 4 == 3 else "ab"[i % 2] for i in range(COUNT)]  # 12 of a, 6 of b, 6 of none
MISSING = [i for i in range(COUNT) if LABELS[i] is None]

pytestmark = pytest.mark.usefixtures("cache")


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


FILES = [png(array) for array in ARRAYS]


def table(path: Path, labels: pa.Array | list, files: list[bytes] = FILES, name: str = "label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": files, name: labels}), path)
    return path


def rows(names: object) -> list[int]:
    return [int(str(name)[-5:]) for name in names]  # type: ignore[attr-defined]


# Tables


@pytest.mark.parametrize("labels", [
    pa.array(LABELS),
    pa.array([None if name is None else "ab".index(name) for name in LABELS], pa.int64()),
    pa.array([np.nan if name is None else "ab".index(name) for name in LABELS], pa.float64()),
    pa.array([-1 if name is None else "ab".index(name) for name in LABELS]),
    pa.array([" " if name is None else name for name in LABELS]),
    pa.array(LABELS).dictionary_encode(),
], ids=["null", "ints", "floats", "-1", "blank", "dictionary"])  # fmt: skip
def test_rows_without_a_label_are_learned_from(labels: pa.Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = table(tmp_path / "a.parquet", labels)
    parts = data.load_parts(str(path), None, ImageSettings(hold_out=0.2))
    train, test, rest = parts["train"], parts["test"], parts["unlabelled"]
    assert rows(rest.ids) == MISSING and rest.labels is None
    assert sorted([*rows(train.ids), *rows(test.ids), *MISSING]) == list(range(COUNT)) and len(test) == 3
    for part in (train, test):
        for row, image, label in zip(rows(part.ids), part.images, part.labels.tolist(), strict=True):
            assert label == row % 2 and np.array_equal(image.permute(1, 2, 0).numpy(), ARRAYS[row])
    learn = data.load_for_pretraining(str(path), None, ImageSettings(hold_out=0.2))
    assert rows(learn.ids) == [*rows(train.ids), *MISSING]
    said = capsys.readouterr().err
    assert (
        "6 of 24 labels in 'label' to train on are missing: such rows are trained on and embedded, without one" in said
    )


def test_every_labelled_row_is_tested_where_there_are_few(tmp_path: Path):
    parts = data.load_parts(str(table(tmp_path / "a.parquet", LABELS)))
    assert sorted(rows(parts["train"].ids)) == sorted(rows(parts["test"].ids)) == sorted({*range(COUNT)} - {*MISSING})
    assert rows(parts["unlabelled"].ids) == MISSING


def test_rows_without_a_label_of_a_test_split_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table(tmp_path / "train.parquet", LABELS[:16], FILES[:16])
    table(tmp_path / "test.parquet", LABELS[16:], FILES[16:])
    parts = data.load_parts(str(tmp_path))
    assert rows(parts["unlabelled"].ids) == [3, 7, 11, 15] and rows(parts["test"].ids) == [0, 1, 2, 4, 5, 6]
    assert parts["test"].labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert "2 of 8 labels in 'label' to test on are missing: such rows are left out" in capsys.readouterr().err


def test_a_test_split_without_labels_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As of competitions, whose test labels are -1."""
    table(tmp_path / "train.parquet", pa.array([0, 1] * 8), FILES[:16])
    table(tmp_path / "test.parquet", pa.array([-1] * 8), FILES[16:])
    train, test = data.load(str(tmp_path))
    assert len(train) == 16 and test is train
    said = capsys.readouterr().err
    assert "of split 'test' no label is known" in said and "split 'test' is left alone" in said


def test_two_columns_of_the_same_classes_are_two(tmp_path: Path):
    path = tmp_path / "a.parquet"
    other = ["ba"["ab".index(name or "a")] for name in LABELS]
    parquet.write_table(pa.table({"image": FILES, "x": [name or "a" for name in LABELS], "y": other}), path)
    x, y = (data.load(str(path), None, ImageSettings(label_column=name))[0] for name in "xy")
    of_x, of_y = (dict(zip(part.ids, part.labels.tolist(), strict=True)) for part in (x, y))
    assert all(of_x[name] == 1 - of_y[name] for name in of_x)


def test_a_run_learns_from_all_rows_and_embeds_them(tmp_path: Path):
    recipe = Recipe(data=str(table(tmp_path / "a.parquet", LABELS)), batch_size=8, views=2, epochs=1,
                    normalisation=PUBLISHED["cifar10"])  # fmt: skip
    run = crlf.embed(crlf.pretrain(recipe, out=tmp_path / "run", device="cpu"), device="cpu")
    found = parquet.read_table(run.file("embeddings.parquet")).to_pylist()
    assert len(found) == COUNT and sum(row["label"] is None for row in found) == len(MISSING)
    assert run.scores["views_seen"] == 2 * 24


# Arrays


@pytest.mark.parametrize("labels", [
    [-1 if name is None else "ab".index(name) for name in LABELS],
    [np.nan if name is None else float("ab".index(name)) for name in LABELS],
    [name or "" for name in LABELS],
], ids=["-1", "nan", "text"])  # fmt: skip
def test_labels_that_are_missing_in_an_array(labels: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(tmp_path / "a.npz", images=ARRAYS, labels=np.array(labels))
    parts = data.load_parts(str(tmp_path / "a.npz"), None, ImageSettings(hold_out=0.2))
    train, test = parts["train"], parts["test"]
    assert rows(parts["unlabelled"].ids) == MISSING and len(test) == 3
    assert [row % 2 for row in rows(train.ids)] == train.labels.tolist()
    for row, image in zip(MISSING, parts["unlabelled"].images, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), ARRAYS[row])
    assert "6 of 24 labels are missing: these images are used for training only" in capsys.readouterr().err


# Copies


@pytest.mark.parametrize(("share", "digests", "reason"), [
    (0.0, "pppq", {"b": "one image"}),
    (0.1, "xyzz", {"b": "only copies of one image"}),
    (0.0, "xyzz", {"b": "only copies of one image"}),
    (0.0, "xyxy", dict.fromkeys("ab", "only images that are in another class as well")),
    (0.1, "xyxv", dict.fromkeys("ab", "fewer than two images that have no copy")),
    (0.0, "xyxv", dict.fromkeys("ab", "fewer than two images that have no copy in another class")),
    (0.0, "xyzv", {}),
])  # fmt: skip
def test_what_a_class_lacks(share: float, digests: str, reason: dict):
    labels = "aaab" if digests == "pppq" else "aabb"
    found = lacking(labels, digests, share)
    assert found == reason or (digests == "pppq" and found == {"a": "only copies of one image"} | reason)


def test_an_image_in_two_classes_is_a_contradiction():
    names = [f"{folder}/{i}" for folder in "abc" for i in range(4)]
    found = arrange(layout(names), [*"pqrs", *"pqtu", *"vwxy"], share=0.0)
    assert found.classes == ["a", "b", "c"]
    assert found.notes == (
        "warning: 2 images lie in several classes, such as in 'a', 'b': no more than one label of each is right",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1, normalisation=PUBLISHED["shapes"])
    return crlf.pretrain(recipe, out=tmp_path_factory.mktemp("run") / "run", device="cpu")


def put(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True)
    for i in numbers:
        (folder / f"{i}.png").write_bytes(FILES[i])


def test_a_classifier_of_copies_is_refused_with_the_reason(run: Run, tmp_path: Path):
    put(tmp_path / "in" / "a", range(8))
    put(tmp_path / "in" / "b", range(8, 9))
    for i in range(4):
        shutil.copy(tmp_path / "in/b/8.png", tmp_path / f"in/b/copy {i}.png")
    line = refused("finetune", str(run.path), str(tmp_path / "in"), "--out", str(tmp_path / "c"), alone=False)
    assert "no labels that can be used: the folders are not used as classes: 'b' has only copies of one image" in line
    path = table(tmp_path / "t" / "a.parquet", ["a"] * 8 + ["b"] * 4, [*FILES[:8], *[FILES[8]] * 4])
    line = refused("finetune", str(run.path), str(path), "--out", str(tmp_path / "c"), alone=False)
    assert "no labels that can be used: of the classes 'b' has only copies of one image" in line
    path = table(tmp_path / "u" / "a.parquet", [0.5] * COUNT)
    line = refused("finetune", str(run.path), str(path), "--out", str(tmp_path / "c"), alone=False)
    assert "no labels that can be used: column 'label' is not used: it holds fractions" in line


def test_one_image_of_each_class_is_enough_where_others_are_tested_on(run: Run, tmp_path: Path):
    """None of them can be held out, and none needs to be."""
    for name, numbers in (("one/a", range(1)), ("one/b", range(1, 2)), ("t/a", range(2, 5)), ("t/b", range(5, 8))):
        put(tmp_path / name, numbers)
    shape, settings = (3, 32, 32), labelled.settings_of(run.recipe, "x")
    found = labelled.read(str(tmp_path / "one"), str(tmp_path / "t"), shape, settings)
    assert found.classes == ("a", "b") and found.train_labels.tolist() == [0, 1] and len(found.test) == 6
