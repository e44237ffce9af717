"""How many labelled images are held out to test on: of few none, and every image is tested by what did not see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from terminal import PIPES, here, refused
from tiny_images import encoded

import crlf
from crlf import cli, data
from crlf.data import ImageSet, ImageSettings, given
from crlf.data.files import class_folders
from crlf.data.files.class_folders import arrange, enough, hold_out, share_of
from crlf.data.files.layout import layout
from crlf.data.stream import Sets
from crlf.errors import InputError
from crlf.evaluation.probe import PROBES
from crlf.recipe import Recipe
from crlf.runs.run import Run

CLASSES, EACH = ("cat", "dog", "eel"), 14
TRAIN = ["--epochs", "1", "--batch-size", "16", "--views", "2", "--encoder", "cnn", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("cache", "narrow")


def picture(label: int, seed: int) -> np.ndarray:
    """Noise around a gray that tells the class: uint8 (16, 16, 3)."""
    random = np.random.default_rng(seed)
    return (60 + 60 * label + random.normal(0, 12, (16, 16, 3))).clip(0, 255).astype(np.uint8)


def put(folder: Path, each: int = EACH) -> Path:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = Image.fromarray(picture(label, 100 * label + i))
            (folder / name / f"{i:02}.png").write_bytes(encoded(image, "PNG"))
    return folder


def pretrained(folder: Path, out: Path, *more: str) -> Path:
    assert cli.main(["pretrain", str(folder), "--out", str(out), *TRAIN, *more]) == 0
    return out


def scores(run: Path) -> dict:
    return json.loads((run / "scores.json").read_text())


# The share


@pytest.mark.parametrize(
    ("asked", "count", "share"),
    [(-1, 4999, 0), (-1, 5000, 0.1), (0, 10**6, 0), (0.1, 20, 0.1), (0.5, 10**6, 0.5)],
)
def test_the_share_is_what_is_asked_for_or_suits_the_number(asked: float, count: int, share: float):
    assert share_of(asked, count) == share


@pytest.mark.parametrize("wrong", [-0.5, -2, 0.51, 1, float("nan")])
def test_a_wrong_share_is_one_line(wrong: float):
    with pytest.raises(InputError, match=r"hold_out must be in 0\.\.0\.5, or -1 .*, not "):
        ImageSettings(hold_out=wrong)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("each", [2, 9, 27, 60])
def test_enough_images_leave_what_is_asked_for(share: float, each: int):
    count = enough(3 * each, 3, share)
    kept, held = hold_out([row % 3 for row in range(count)], list(map(str, range(count))), share)
    assert len(kept) >= 3 * each and bool(held) == bool(share)
    assert abs(len(held) - share * count) <= 3 and not set(kept) & set(held)


# The data


def test_few_images_are_all_tested_and_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(put(tmp_path))
    train, test = data.load(folder)
    assert test is train and len(train) == 3 * EACH and train.hold_out == 0
    assert train.labels.tolist() == [0, 1, 2] * EACH, "classes take turns"
    assert len(data.load_for_pretraining(folder)) == len(train)
    assert "which pretraining never sees; no images are held out" in capsys.readouterr().err
    first, again = data.load(folder, subset=10)
    assert again is first and len(first) == 10 and set(first.labels.tolist()) == {0, 1, 2}
    held = data.load(folder, settings=ImageSettings(hold_out=0.25))  # another place in the cache
    assert list(map(len, held)) == [30, 12] and held[0].hold_out == held[1].hold_out == 0.25
    assert "12 images, about 25 % of each class, are held out" in capsys.readouterr().err
    assert data.load(folder)[0].ids == train.ids


def test_of_many_images_a_tenth_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = str(put(tmp_path))
    monkeypatch.setattr(class_folders, "MANY", 3 * EACH)
    train, test = data.load(folder)
    assert test is not train and len(test) == 3 and train.hold_out == 0.1
    few, same = data.load(folder, subset=3 * EACH - 1)
    assert same is few, "a subset is as few images as it is"


def test_the_labels_of_tables_and_arrays_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = np.stack([picture(row % 3, row) for row in range(30)])
    labels = [row % 3 for row in range(30)]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    cells = [encoded(Image.fromarray(image), "PNG") for image in images]
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "a.parquet")
    for name in ("a.npz", "a.parquet"):
        where = str(tmp_path / name)
        train, test = data.load(where)
        assert test is train and train.labels.tolist() == labels and train.hold_out == 0, name
        train, test = data.load(where, settings=ImageSettings(hold_out=0.1))
        assert (len(train), len(test), train.hold_out) == (27, 3, 0.1), name
        monkeypatch.setattr(class_folders, "MANY", 30)
        assert len(data.load(where)[1]) == 3, name
        monkeypatch.undo()


def test_a_test_split_is_the_test_set_all_the_same(tmp_path: Path):
    for split in ("train", "test"):
        put(tmp_path / split, 4)
    train, test = data.load(str(tmp_path), settings=ImageSettings(hold_out=0.5))
    assert len(train) == len(test) == 12 and not set(train.ids) & set(test.ids) and train.hold_out < 0


def test_copies_alone_tell_no_class():
    names = ["a/1", "a/2", "b/1", "b/2"]
    found = arrange(layout(names), ["x", "y", "z", "z"], share=0)
    assert found.labels is None and "'b' has only copies of one image" in found.notes[0]
    found = arrange(layout(names), ["x", "x", "z", "y"], share=0)
    assert found.labels is None
    more = arrange(layout([*names, "b/3"]), ["x", "y", "z", "z", "v"], share=0)
    assert more.classes == ["a", "b"] and more.test == [] and sorted(more.train) == [0, 1, 2, 3, 4]


def test_a_class_of_one_image_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (put(tmp_path) / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_bytes(encoded(Image.fromarray(picture(1, 999)), "PNG"))
    train, test = data.load(str(tmp_path))
    assert test is train and train.classes[0] == "ant" and "ant/0.png" in train.ids
    assert "'ant' has one image: they cannot be recognised by others" in capsys.readouterr().err


def test_new_images_are_read_once(tmp_path: Path):
    train, test = data.load(str(put(tmp_path)))
    assert sum(len(part.ids) for part in Sets("x", train, test, (3, 32, 32)).parts(range(42), 5)) == 42 == len(train)


def test_images_given_from_python_are_tested_where_they_are_few():
    images = ImageSet(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 2, ("a", "b"), list("abcdef"))
    train, test = given.both(images, ImageSettings(), 4)
    assert test is train and len(train) == 4
    for settings, learned in ((ImageSettings(hold_out=0.1), False), (ImageSettings(), True)):
        assert len(given.both(images, settings, 0, learned)[1]) == 0


# Older runs


def test_an_older_run_held_a_tenth_out():
    now = Recipe(data="/there").to_dict()
    images = {name: value for name, value in now["images"].items() if name != "hold_out"}
    assert Recipe.from_dict(now | {"images": images}).images.hold_out == 0.1
    assert Recipe.from_dict(now).images.hold_out == -1
    assert Recipe.from_dict(now | {"images": images, "data": "cifar10"}).images.hold_out == -1


# Through the commands


@pytest.mark.long
def test_every_image_is_tested_from_the_folder_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, N = pretrained(put(tmp_path / "photos"), tmp_path / "run"), 3 * EACH
    said = capsys.readouterr().err
    assert f"all {N} images will be tested by cross-validation (--hold-out 0.1 holds out a tenth instead)" in said
    assert json.loads((run / "recipe.json").read_text())["images"]["hold_out"] == 0
    assert cli.main(["embed", str(run)]) == 0
    assert scores(run)["cross_validated"] is True
    for name in ("emb.npy", "lbl.npy", "ids.json"):
        assert (run / f"train_{name}").read_bytes() == (run / f"test_{name}").read_bytes(), name
    assert len(np.load(run / "test_emb.npy")) == N
    table = pq.read_table(run / "embeddings.parquet")
    assert table["id"].to_pylist() == json.loads((run / "train_ids.json").read_text())

    assert cli.main(["probe", str(run), "--probes", "quick,few_label"]) == 0
    found = scores(run)
    assert "5-fold cross-validated" in found["protocol"]["linear"] and "leave one out" in found["protocol"]["knn"]
    assert found["linear_accuracy"] > 0.8, "the gray tells the class"
    predicted, truth = np.load(run / "test_pred.npy"), np.load(run / "test_lbl.npy")
    assert len(predicted) == N and found["linear_accuracy"] == (predicted == truth).mean()
    assert np.load(run / "test_prob.npy").shape == (N, 3)
    assert not any("test images" in how for how in found["protocol"].values())

    for stage in ("draw", "report", "summary", "doctor"):
        assert cli.main([stage, str(run)]) == 0, stage
    assert f"all {N} images, cross-validated" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "of all images right (cross-validated)" in page and "of the test images right" not in page
    assert f"All {N} training images" in page and "cat/00.png" in page
    drawn = Image.open(run / "confusion_matrix.png").text["Title"]
    assert drawn.startswith("Linear probe, cross-validated") and f"of all {N} images right" in drawn


@pytest.mark.long
def test_what_follows_knows_that_every_image_is_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, N = pretrained(put(tmp_path / "photos"), tmp_path / "run"), 3 * EACH
    for command in ("embed", "probe", "doctor"):
        assert cli.main([command, str(run)]) == 0, command
    said = capsys.readouterr().out
    assert "training images" in said and "leakage" not in said
    assert cli.main(["compare", str(run), str(run)]) == 0
    assert f"Linear probe on all {N} images, cross-validated" in capsys.readouterr().out
    assert cli.main(["explore", str(run), "--table-only"]) == 0
    assert pq.read_table(run / "explore.parquet").num_rows == N
    again = pretrained(tmp_path / "photos", run, "--resume")
    assert Run.open(again).recipe.images.hold_out == 0


def test_a_tenth_is_held_out_where_it_is_asked_for(tmp_path: Path):
    run = pretrained(put(tmp_path / "photos"), tmp_path / "run", "--hold-out", "0.1")
    Run.open(run).update_scores(cross_validated=True)  # of another time
    assert cli.main(["embed", str(run)]) == 0 and "cross_validated" not in scores(run)
    assert len(np.load(run / "train_emb.npy")) == 39 and len(np.load(run / "test_emb.npy")) == 3
    assert cli.main(["probe", str(run), "--probes", "linear"]) == 0
    assert "39 training images" in scores(run)["protocol"]["linear"]
    every = pretrained(tmp_path / "photos", tmp_path / "every")
    assert cli.main(["embed", str(every)]) == 0 and cli.main(["probe", str(every), "--probes", "linear"]) == 0
    assert "must have the same test images" in refused("compare", str(run), str(every))


def test_what_learns_from_labels_is_tested_on_others(tmp_path: Path):
    folder = put(tmp_path / "photos")
    run = pretrained(folder, tmp_path / "run", "--method", "supcon")
    assert json.loads((run / "recipe.json").read_text())["images"]["hold_out"] == 0.1
    assert cli.main(["embed", str(run)]) == 0
    assert len(np.load(run / "test_emb.npy")) == 3 and "cross_validated" not in scores(run)
    line = refused(
        "pretrain", str(folder), "--out", str(tmp_path / "b"), *TRAIN, "--method", "supcon", "--hold-out", "0",
        alone=False,
    )  # fmt: skip
    assert "hold_out must not be 0 for method 'supcon', which learns from labels" in line
    assert not (tmp_path / "b").exists()


def test_a_classifier_learns_from_all_images_where_others_test_it(tmp_path: Path):
    run = pretrained(put(tmp_path / "photos"), tmp_path / "run")
    put(tmp_path / "splits" / "train", 6)
    put(tmp_path / "splits" / "test", 5)
    alone, photos = tmp_path / "splits" / "test", str(tmp_path / "photos")
    for test in (alone, tmp_path / "splits"):  # of splits the test images
        folder = crlf.finetune(run, photos, test=str(test), out=tmp_path / "c", overwrite=True, device="cpu")
        found = scores(folder)
        assert (found["train_images"], found["test_images"]) == (42, 15) and found["chance"] == pytest.approx(1 / 3)
    folder = crlf.finetune(run, photos, out=tmp_path / "c", overwrite=True, device="cpu")
    found = scores(folder)
    assert (found["train_images"], found["test_images"]) == (39, 3) and "held out" in found["protocol"]
    folder = crlf.finetune(run, str(tmp_path / "splits"), out=tmp_path / "c", overwrite=True, device="cpu")
    assert (scores(folder)["train_images"], scores(folder)["test_images"]) == (18, 15)


def test_chance_of_equally_frequent_classes_is_their_mean():
    from crlf.evaluation.labelled import chance

    assert chance(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1])) == 0.5
    assert chance(np.array([0, 1, 1]), np.array([0, 1, 1, 1])) == 0.75


@pytest.mark.long
def test_every_probe_takes_classes_of_one_and_two_images(tmp_path: Path):
    folder = put(tmp_path / "photos", 8)
    for name, count in (("ant", 1), ("bee", 2), ("fly", 3)):
        (folder / name).mkdir()
        for i in range(count):
            image = Image.fromarray(picture(1, 900 + 10 * ord(name[0]) + i))
            (folder / name / f"{i}.png").write_bytes(encoded(image, "PNG"))
    (folder / "fly" / "copy.png").write_bytes((folder / "fly" / "0.png").read_bytes())
    run = pretrained(folder, tmp_path / "run")
    assert cli.main(["embed", str(run)]) == 0
    for probes in ("all", "supervised,fine_tuning"):
        assert cli.main(["probe", str(run), "--probes", probes]) == 0
    found = scores(run)
    assert set(PROBES) - {"augmented"} <= set(found["protocol"]) and "few_label" in found
    assert all(np.isfinite(found[key]) for key in found if key.endswith("_accuracy"))
    assert np.load(run / "test_pred.npy").shape == (31,) and np.load(run / "test_prob.npy").shape == (31, 6)


def test_a_recipe_of_ones_own_images_begins_a_run_of_a_known_data_set(tmp_path: Path):
    """What a run notes of its own images says nothing of a data set known by name: size, white, what is held out."""
    put(tmp_path / "in", 4)
    small = ["--epochs", "1", "--views", "2", "--subset", "32", "--batch-size", "16", "--device", "cpu"]
    assert here(PIPES, "pretrain", str(tmp_path / "in"), "--out", str(tmp_path / "own"), "--white", "4095", *small[:4],
                "--device", "cpu").code == 0  # fmt: skip
    recipe = tmp_path / "own" / "recipe.json"
    assert (
        json.loads(recipe.read_text())["images"] | {"hold_out": 0.0, "white": 4095}
        == json.loads(recipe.read_text())["images"]
    )
    other = ["pretrain", "--recipe", str(recipe), "--data", "shapes", "--out", str(tmp_path / "other"), *small]
    assert here(PIPES, *other).code == 0
    assert Run(tmp_path / "other").recipe.images == ImageSettings()
    shown = here(PIPES, *other[:-2], "--overwrite", "--white", "4095")
    assert shown.code == 2 and "white is for your own images, not for the data set 'shapes'" in shown.text
