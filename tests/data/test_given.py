"""Images given from Python learn what the same images in a file do, and what needs them again says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crlf
from crlf import cli
from crlf.data import ImageSet, ImageSettings, given, load
from crlf.errors import InputError
from crlf.evaluation.logistic_regression import fit_chosen
from crlf.exporters import export
from crlf.normalisation import measured
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOSS, RECIPE

TRAIN, TEST = (part.first(count) for part, count in zip(load("shapes"), (96, 60), strict=True))
IMAGES = TRAIN.images.numpy()
TINY = Recipe(batch_size=32, views=2, epochs=1)
NAME = "array of 96 images of 3×32×32"

pytestmark = pytest.mark.usefixtures("narrow")


def learned(data: given.Given, folder: Path, recipe: Recipe = TINY, **more) -> crlf.Run:
    return crlf.pretrain(recipe, data=data, out=folder, device="cpu", **more)


@pytest.fixture
def run(tmp_path: Path) -> crlf.Run:
    return learned(IMAGES, tmp_path / "run")


GIVEN = {
    "channels first": IMAGES,
    "channels last": IMAGES.transpose(0, 2, 3, 1),
    "a tensor": TRAIN.images,
    "a tensor, channels last": TRAIN.images.permute(0, 2, 3, 1),
    "a set": dataclasses.replace(TRAIN, labels=None, classes=()),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_it_learns_what_the_same_file_teaches(kind: str, tmp_path: Path):
    np.save(tmp_path / "images.npy", IMAGES)
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "images.npy"))
    filed = crlf.embed(crlf.pretrain(recipe, out=tmp_path / "filed", device="cpu"), device="cpu")
    run = crlf.embed(learned(GIVEN[kind], tmp_path / "run"), data=GIVEN[kind], device="cpu")
    for name in (ENCODER, LOSS, "train_emb.npy", "test_emb.npy", "thumbnails.npy"):
        assert run.file(name).read_bytes() == filed.file(name).read_bytes(), name
    assert run.recipe == dataclasses.replace(filed.recipe, data=NAME)
    assert json.loads(run.file(RECIPE).read_text())["data"] == run.scores["data"] == NAME
    assert run.recipe.normalisation == measured(TRAIN.images)


def test_gray_and_settings_of_the_recipe(tmp_path: Path):
    gray = IMAGES[:, 0]
    scaled = dataclasses.replace(TINY, images=ImageSettings(image_size=16), subset=64)
    run = learned(gray, tmp_path / "run", scaled)
    assert run.recipe.data == "array of 96 images of 3×16×16" and run.scores["image_shape"] == [3, 16, 16]
    crlf.embed(run, data=gray, device="cpu")
    assert len(run.array("train_emb.npy")) == 64
    np.testing.assert_allclose(crlf.load(run, device="cpu").encode(gray[:64]), run.array("train_emb.npy"), atol=1e-5)
    one = ImageSet(TRAIN.images[:, :1].contiguous(), None, (), TRAIN.ids)  # a set stays as it is
    assert learned(one, tmp_path / "one").recipe.data == "array of 96 images of 1×32×32"
    with pytest.raises(InputError, match="image_size scales images of 3 channels, not of 1"):
        learned(one, tmp_path / "two", scaled)


def test_labels_and_test_images_are_measured_with(tmp_path: Path):
    """And pretraining watches kNN, as it does where a data set known by name has labels."""
    run = learned(TRAIN, tmp_path / "run")
    assert "knn_accuracy" in run.log()[-1]
    crlf.embed(run, data=(TRAIN, TEST), device="cpu")
    assert run.ids("train") == list(TRAIN.ids) and run.ids("test") == list(TEST.ids)
    model, _ = fit_chosen(run.array("train_emb.npy"), TRAIN.labels.numpy())
    right = (model.predict(run.array("test_emb.npy")) == TEST.labels.numpy()).mean()
    assert 0 < right < 1 and crlf.probe(run)["linear_accuracy"] == right
    crlf.embed(run, data=(IMAGES, TEST.images), device="cpu")
    assert run.ids("test")[0] == "test/00000"


# What needs them again


def test_a_run_is_resumed_with_its_images_alone(run: crlf.Run, capsys):
    before = run.file(ENCODER).read_bytes()
    assert learned(IMAGES, run.path, resume=True).file(ENCODER).read_bytes() == before
    with pytest.raises(
        InputError, match=r"^data is 'array of 64 images .*', but the run to resume in .* has 'array of 96"
    ):
        learned(IMAGES[:64], run.path, resume=True)
    with pytest.raises(
        InputError, match=r"^the images of 'array of 96 images of 3×32×32' are not those that the check"
    ):
        learned(255 - IMAGES, run.path, resume=True)
    assert cli.main(["pretrain", "--resume", "--out", str(run.path)]) == 2
    assert "give it again, as crlf.embed(run, data=images)" in capsys.readouterr().err


def test_the_command_line_says_in_a_line_that_they_must_be_given_again(run: crlf.Run, tmp_path: Path, capsys):
    again = f"error: {NAME!r} was given as an array and not stored: give it again, as crlf.embed(run, data=images)"
    for words in (
        ["embed", str(run.path)],
        ["pretrain", "--recipe", str(run.file(RECIPE)), "--out", str(tmp_path / "again")],
    ):
        assert cli.main(words) == 2
        assert capsys.readouterr().err == f"crlf {words[0]}: {again}\n"
    assert not (tmp_path / "again").exists() and not run.file("train_emb.npy").exists()


@pytest.mark.long
def test_what_needs_no_images_needs_none(run: crlf.Run, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    crlf.embed(run, data=(TRAIN, TEST), device="cpu")
    crlf.probe(run)
    crlf.draw(run)
    crlf.report(run)
    Image.fromarray(IMAGES[3].transpose(1, 2, 0)).save(tmp_path / "three.png")
    [[nearest]] = crlf.search(run, tmp_path / "three.png", k=1, figure=tmp_path / "near.png", device="cpu")
    assert nearest.row == 3 and (tmp_path / "near.png").is_file()  # without the pictures of the neighbours
    capsys.readouterr()
    crlf.doctor(run)
    assert f"{NAME!r} was given as an array" in capsys.readouterr().out.replace("\n   ", " ")
    with pytest.raises(InputError, match="was given as an array and not stored"):
        crlf.probe(run, probes="pixels")
    seen = []
    monkeypatch.setattr(
        export, "in_fresh_process", lambda pixels, folder, verb: (seen.append(pixels), expected(pixels))[1]
    )
    expected = crlf.load(run, device="cpu").encode
    folder = crlf.export(run, format="torch")
    assert seen[0].shape == (64, 3, 32, 32) and seen[0].dtype == np.uint8 and seen[0].std() > 70
    assert "64 images of noise" in capsys.readouterr().out
    assert "on 64 images of noise" in (folder / "README.md").read_text(encoding="utf-8")


# What is refused


@pytest.mark.parametrize(
    "data, why",
    [
        (IMAGES / 255, r"array 'data' must be uint8 .*, not float64 \(96, 3, 32, 32\)"),
        (torch.zeros(3, 32), "must be uint8"),
        (IMAGES[:, :2], "must be uint8"),
        ("shapes", "data must be an ImageSet or an array of images, not a str: names and paths go into the recipe"),
        ([IMAGES], "not a list"),
        (IMAGES[:0], "must be uint8"),
        (IMAGES[:1].repeat(40, 0), r"images of 'array of 40 images of 3×32×32' must differ"),
        (IMAGES[:20], "batch_size must be at most the 20 training images"),
    ],
)
def test_other_things_are_refused_and_nothing_is_written(data, why: str, tmp_path: Path):
    with pytest.raises(InputError, match=why) as caught:
        learned(data, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_embed_takes_them_for_such_a_run_alone(run: crlf.Run, tmp_path: Path):
    for wrong, why in (
        (IMAGES[:, :, :16], "images in data must have 32 × 32 pixels with 3 channels, as in training, not 16 × 32"),
        ((IMAGES, TEST.images[:, :2]), "must be uint8"),
    ):
        with pytest.raises(InputError, match=why):
            crlf.embed(run, data=wrong, device="cpu")
    with pytest.raises(InputError, match="data is for a run whose images were given as arrays"):
        crlf.embed(run, tmp_path, data=IMAGES)
    other = crlf.pretrain(dataclasses.replace(TINY, data="shapes", subset=64), out=tmp_path / "other", device="cpu")
    with pytest.raises(InputError, match="data is for a run whose images were given as arrays"):
        crlf.embed(other, data=IMAGES)
    assert not run.file("train_emb.npy").exists() and not other.file("train_emb.npy").exists()


def test_its_name_is_no_path():
    assert given.is_given(NAME) and given.is_given("array of 1,281,167 images of 3×224×224")
    for path in ("array of photos", f"/data/{NAME}", f"{NAME}.npy", "arrays"):
        assert not given.is_given(path)
