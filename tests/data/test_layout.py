"""What folders say: splits, masks, classes and dates; through the loader, with the reasons that are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal import PIPES, here
from tiny_images import encoded, pixels

from crlf import data
from crlf.data import ImageSettings
from crlf.data.files.class_folders import arrange
from crlf.data.files.layout import layout, looks_like_a_date
from crlf.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


def put(folder: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels(seed, 16, 16), "PNG"))
    return folder


def several(*folders: str, count: int = 4) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


CLASSES = ("cat", "dog")


def in_classes(*splits: str) -> list[str]:
    return several(*(f"{split}/{name}" for split in splits for name in CLASSES))


# Each: names of the files; the splits that are trained on and tested on, by the beginnings of their names
SPLITS = {
    "train and test": (in_classes("train", "test"), "train/", "test/"),
    "train and val": (in_classes("train", "val"), "train/", "val/"),
    "in capitals": (in_classes("Train", "Val"), "Train/", "Val/"),
    "valid": (in_classes("train", "valid"), "train/", "valid/"),
    "validation": (in_classes("TRAIN", "Validation"), "TRAIN/", "Validation/"),
    "training and testing": (in_classes("training", "testing"), "training/", "testing/"),
    "all three": (in_classes("train", "val", "test"), "train/", "test/"),
    "wrapped once more": (in_classes("my pets/train", "my pets/test"), "my pets/train/", "my pets/test/"),
    "wrapped inside": (in_classes("train/train", "test/test"), "train/", "test/"),
    "images inside": (in_classes("train/images", "test/images"), "train/", "test/"),
    "with a year": (in_classes("train2017", "val2017"), "train2017/", "val2017/"),
    "with a name": (in_classes("pets_train", "pets-test"), "pets_train/", "pets-test/"),
    "with words": (in_classes("train_set", "test_set"), "train_set/", "test_set/"),
    "within classes": (several("cat/train", "cat/test", "dog/train", "dog/test"), "/train/", "/test/"),
    "a test set without classes": ([*in_classes("train", "val"), *several("test")], "train/", "val/"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_split_folders_are_splits(name: str, tmp_path: Path):
    names, train_on, test_on = SPLITS[name]
    train, test = data.load(str(put(tmp_path, names)), None, ImageSettings(image_size=16))
    assert train.classes == test.classes == CLASSES
    assert sorted(train.ids) == sorted(name for name in names if train_on in f"/{name}".replace("//", "/"))
    assert sorted(test.ids) == sorted(name for name in names if test_on in f"/{name}".replace("//", "/"))
    for part in (train, test):
        assert all(f"/{part.classes[label]}/" in f"/{name}" for name, label in zip(part.ids, part.labels, strict=True))


def test_split_folders_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = data.load(str(put(tmp_path, several("train", "val"))), None, ImageSettings(image_size=16))
    assert train.labels is None and test.labels is None
    assert {name[:5] for name in train.ids} == {"train"} and {name[:3] for name in test.ids} == {"val"}
    assert "the folders are splits: 'train' is for training, 'val' is for testing" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["unlabeled", "unlabelled", "Train_Unlabelled", "extra"])
@pytest.mark.parametrize("subset", [0, 10])
def test_an_unlabelled_part_is_learned_from_and_has_no_label(folder: str, subset: int, tmp_path: Path):
    path = put(tmp_path, [*in_classes("train", "test"), *several(folder, count=9)])
    settings = ImageSettings(image_size=16)
    train, test = data.load(str(path), None, settings, subset)
    learn = data.load_for_pretraining(str(path), None, settings, subset)
    assert (len(train), len(test)) == (8, 8) and set(train.labels.tolist()) == {0, 1} and learn.labels is None
    assert len(learn) == (subset or 17) and learn.ids[:8] == train.ids
    assert all(name.startswith(folder) for name in learn.ids[8:])


@pytest.mark.parametrize(("labelled", "unlabelled", "more"), [
    ("labeled", "unlabeled", []),
    ("train/labelled", "train/Unlabelled", in_classes("test")),
    ("train", "train/unlabeled", in_classes("test")),
    (".", "unlabelled", []),
    ("all/train", "all/train/unlabeled", []),
])  # fmt: skip
def test_an_unlabelled_part_in_any_place(labelled: str, unlabelled: str, more: list[str], tmp_path: Path):
    own = [name.removeprefix("./") for name in in_classes(labelled)]
    path = str(put(tmp_path, [*own, *several(unlabelled, count=3), *more]))
    train, test = data.load(path, None, ImageSettings(image_size=16))
    learn = data.load_for_pretraining(path, None, ImageSettings(image_size=16))
    assert train.classes == CLASSES and sorted(train.ids) == sorted(own)
    assert len(test) == 8 and (test is train) is not bool(more)
    assert [name for name in learn.ids if name not in own] == several(unlabelled, count=3)


def test_a_folder_of_nothing_but_unlabelled_images_has_no_labels(tmp_path: Path):
    names = several("unlabeled/a", "unlabeled/b")
    train, test = data.load(str(put(tmp_path, names)), None, ImageSettings(image_size=16))
    assert train.classes == ("a", "b") and len(test) == len(names), "its folders may be classes all the same"


@pytest.mark.parametrize(("folders", "reason"), [
    (("Photos from 2019", "Photos from 2020"), "their names are dates, such as 'Photos from 2019'"),
    (("14.07.19", "15.07.19"), "their names are dates, such as '14.07.19'"),
    (("Summer 2019", "winter_2020"), "their names are dates"),
    (("100CANON", "101CANON"), "their names are what cameras call folders, such as '100CANON'"),
    (("AM General Hummer SUV 2000", "Audi S4 Sedan 2012"), ""),
])  # fmt: skip
def test_what_phones_and_cameras_call_folders_is_no_class(folders: tuple[str, ...], reason: str):
    names = several(*folders)
    found = arrange(layout(names), names)
    assert (found.labels is None) is bool(reason) and reason in found.why


def test_an_unlabelled_part_beside_train_alone(tmp_path: Path):
    path = put(tmp_path, [*in_classes("train"), *several("unlabeled", count=3)])
    train, test = data.load(str(path), None, ImageSettings(image_size=16, hold_out=0.1))
    assert len(train) == 6 and sorted(test.labels.tolist()) == [0, 1]
    assert len(data.load_for_pretraining(str(path), None, ImageSettings(image_size=16, hold_out=0.1))) == 9
    train, test = data.load(str(path), None, ImageSettings(image_size=16))
    assert test is train and len(train) == 8
    assert len(data.load_for_pretraining(str(path), None, ImageSettings(image_size=16))) == 11


@pytest.mark.parametrize(
    "names",
    [
        several("train", "bus", "car"),  # vehicles
        several("test", "control"),
        several("steam train", "test tube"),
        several("val", "test"),
    ],
)
def test_classes_of_such_names_are_classes(names: list[str]):
    found = arrange(layout(names), names)
    assert found.classes == sorted({name.partition("/")[0] for name in names})


@pytest.mark.parametrize(
    "names",
    [
        several("images", "masks"),
        several("JPEGImages", "SegmentationClass"),
        several("set/images", "set/labels"),
        [*several("images/cat", "images/dog"), *several("masks/cat", "masks/dog")],
        [*several("train/images", "train/masks"), *several("val/images", "val/masks")],
    ],
)
def test_masks_are_no_images(names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = data.load(str(put(tmp_path, names)), None, ImageSettings(image_size=16, hold_out=0.1))
    assert sorted([*train.ids, *test.ids]) == sorted(name for name in names if "mages/" in name)
    assert train.classes == (("cat", "dog") if any("cat" in name for name in names) else ())
    assert "is not used: its name suggests masks or labels drawn over the images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "is_date"),
    [
        *[(name, True) for name in ("2019", "1998", "2019-07", "2019_7", "201907", "20190714", "2019-07-14", "July")],
        *[(name, True) for name in ("14.07.2019", "07-2019", "2019-07-14 Rome", "2019 Rome", "07-July", "jul 2019")],
        *[(name, False) for name in ("cat", "0", "7", "12", "0042", "1850", "3000", "n02084071", "marble", "20", "2d")],
    ],
)
def test_dates(name: str, is_date: bool):
    assert looks_like_a_date(name) is is_date


def test_folders_of_dates_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = data.load(str(put(tmp_path, several("2019", "2020"))), None, ImageSettings(image_size=16))
    assert train.labels is None and len(train) == 8 and not len(test)
    assert "the folders are not used as classes: their names are dates, such as '2019'" in capsys.readouterr().err


def test_some_names_of_dates_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, _ = data.load(str(put(tmp_path, several("2019", "2020", "cat"))), None, ImageSettings(image_size=16))
    assert train.classes == ("2019", "2020", "cat")
    said = capsys.readouterr().err
    assert "warning: '2019', '2020' look like dates: use --no-labels if folders are not classes" in said


@pytest.mark.parametrize("names", [several("cat", "dog"), in_classes("train", "val")])
def test_no_labels(names: list[str], tmp_path: Path):
    train, test = data.load(str(put(tmp_path, names)), None, ImageSettings(image_size=16, labels=False))
    assert train.labels is None and test.labels is None and len(train) == 8
    assert len(test) == (8 if "train" in names[0] else 0)


# One odd class


def test_a_class_of_one_image_is_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = put(tmp_path, [*several("cat", "dog"), "bird/0.png"])
    train, test = data.load(str(path), None, ImageSettings(image_size=16, hold_out=0.1))
    assert train.classes == ("bird", "cat", "dog") and sorted(test.labels.tolist()) == [1, 2]
    assert "bird/0.png" in train.ids
    assert "'bird' has one image: none of them is held out" in capsys.readouterr().err


def test_one_loose_image_does_not_silence_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = put(tmp_path, [*several("cat", "dog", count=10), "cover.png"])
    settings = ImageSettings(image_size=16, hold_out=0.1)
    train, test = data.load(str(path), None, settings)
    learn = data.load_for_pretraining(str(path), None, settings)
    assert len(train) == 18 and len(test) == 2 and list(learn.ids) == [*train.ids, "cover.png"]
    assert "1 image lies in no class folder: used for training and embedded, without a label" in capsys.readouterr().err


def test_a_class_of_the_test_split_alone_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = put(tmp_path, [*in_classes("train", "test"), *several("test/eel")])
    train, test = data.load(str(path), None, ImageSettings(image_size=16))
    assert train.classes == test.classes == CLASSES and len(test) == 8
    assert "test images of 'eel' are left out: there are no training images of this class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([*several("a", "b"), "loose.png"], "1 of 9 images lie beside them"),
        ([*several("a"), "b/0.png"], "'b' has one image"),
        ([f"{i}/x.png" for i in range(9)], "'0', '1', '2' and 6 more have one image"),
    ],
)
def test_the_reason_is_told(names: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = data.load(str(put(tmp_path, names)), None, ImageSettings(image_size=16))
    assert train.labels is None and len(train) == len(names) and not len(test)
    assert f"the folders are not used as classes: {reason}" in capsys.readouterr().err


# Sidecars


def test_sidecars_do_not_count_as_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    put(tmp_path, [f"{i}.png" for i in range(6)])
    for i in range(20):
        (tmp_path / f"{i}.json").write_text("{}")
    (tmp_path / "note.TXT").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    assert len(data.load(str(tmp_path), None, ImageSettings(max_skipped=0))[0]) == 6
    said = capsys.readouterr().err
    assert "other files: 20 × .json, 1 × without a suffix, 1 × .txt" in said and "skipped" not in said
    (tmp_path / "bad.png").write_text("{}")
    with pytest.raises(InputError, match=r"1 of 7 files were skipped, more than max_skipped 0\.1"):
        data.load(str(tmp_path), None, ImageSettings())


# Through the command


def test_pretraining_on_splits_ends_in_their_embeddings(tmp_path: Path, narrow: None):
    import pyarrow.parquet as pq

    path, run = put(tmp_path / "pets", [*in_classes("train", "test"), *several("unlabeled")]), str(tmp_path / "run")
    tiny = ("--epochs", "1", "--views", "2", "--image-size", "16", "--device", "cpu")
    code, said = here(PIPES, "pretrain", str(path), "--out", run, *tiny)
    assert code == 0 and "each batch holds all 12 images (--batch-size sets another size)" in said
    assert here(PIPES, "embed", run).code == 0
    rows = pq.read_table(f"{run}/embeddings.parquet").to_pylist()
    told = [(row["split"], row["class"]) for row in rows]
    assert {pair: told.count(pair) for pair in told} == {
        ("train", "cat"): 4, ("train", "dog"): 4, ("test", "cat"): 4, ("test", "dog"): 4, (None, None): 4
    }  # fmt: skip
