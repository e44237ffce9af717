"""Mean and deviation: measured as numpy does, kept with the run, and the same in whatever sees an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import some

import crlf
from crlf import cli, normalisation
from crlf import data as sources
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED, ImageSet
from crlf.errors import InputError
from crlf.exporters import export
from crlf.normalisation import FLOOR, Normalisation, measured, normalise
from crlf.optim import OptimSettings
from crlf.recipe import RECIPES, Recipe
from crlf.runs.files import save_tensors, write_json
from crlf.runs.run import CHECKPOINT, ENCODER, LOSS, RECIPE

TINY = {"epochs": 1, "batch_size": 32, "views": 2, "optim": OptimSettings(optimizer="sgd", lr=0.01)}


def dark(count: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Images of little light and less contrast, another in each channel: uint8 (N, C, 16, 16)."""
    random, middle = np.random.default_rng(seed), np.array([30, 60, 90, 20, 50])[:channels, None, None]
    noise = random.normal(0, 8, (count, channels, 16, 16)) + 4 * random.normal(size=(count, channels, 1, 1))
    return torch.from_numpy((middle + noise).clip(0, 255).astype(np.uint8))


# What is measured


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_it_is_numpys_over_all_pixels_of_the_set(channels: int):
    images = dark(120, channels=channels)
    x = images.numpy() / 255
    found = measured(images)
    assert len(found.mean) == len(found.std) == channels
    np.testing.assert_allclose(found.mean, x.mean(axis=(0, 2, 3)), atol=5.1e-5)  # four digits
    np.testing.assert_allclose(found.std, x.std(axis=(0, 2, 3)), atol=5.1e-5)
    scaled = normalise(images, found)
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 0.01 and (scaled.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01


def test_of_many_images_evenly_spaced_ones_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(normalisation, "SAMPLE", 7)
    images = dark(100)
    assert measured(images) == measured(images[[0, 14, 28, 42, 57, 71, 85]])
    assert measured(images) != measured(images[:7])  # a folder's first images may be of one class


def test_the_published_ones_of_cifar10_are_measured_on_it(cifar10, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(normalisation, "SAMPLE", 50_000)
    assert measured(cifar10[0].images) == PUBLISHED["cifar10"]


def test_those_of_shapes_were_measured():
    assert measured(sources.load("shapes")[0].images) == PUBLISHED["shapes"]


def test_a_channel_without_variance_is_not_divided_by_none():
    images = dark(50)
    images[:, 1] = 77
    found = measured(images)
    assert found.std[1] == FLOOR and found.std[0] > FLOOR
    views = Views(ViewSettings(), found)(images, torch.Generator().manual_seed(0))
    assert normalise(images, found)[:, 1].abs().max() < 0.02 and views.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5,)}, {"std": (0.5,)}, {"mean": (0.5, 0.5), "std": (0.5,)}, {"mean": (0.5,), "std": (0.0,)},
              {"mean": (float("nan"),), "std": (1.0,)}, {"mean": (0.5,), "std": (float("inf"),)}],
)  # fmt: skip
def test_wrong_numbers_are_named(wrong: dict):
    with pytest.raises(InputError, match=r"^(mean|std|mean and std) must ") as caught:
        Normalisation(**wrong)
    assert "\n" not in str(caught.value)


def test_nothing_is_normalised_by_numbers_that_are_not_there():
    with pytest.raises(InputError, match=r"^mean and std are not known: `crlf pretrain` measures them"):
        normalise(dark(2), Normalisation())


# The run's


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, narrow: None) -> tuple[ImageSet, ImageSet]:
    """The data set "dark", and a small network."""
    labels = torch.arange(96) % 3
    made = [ImageSet(dark(96, seed), labels, ("a", "b", "c"), [f"{seed}/{i}" for i in range(96)]) for seed in (1, 2)]
    for i, part in enumerate(made):
        part.images[:, i] += (20 * labels[:, None, None]).to(torch.uint8)  # something to learn
    monkeypatch.setitem(sources.SOURCES, "dark", lambda data_dir: tuple(made))
    return made[0], made[1]


@pytest.mark.parametrize("probes", some(["augmented,untrained", "robustness,supervised,fine_tuning"]))
def test_every_stage_uses_the_numbers_of_the_training_images(
    own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: str
):
    used: list[Normalisation] = []
    numbers = Normalisation.numbers
    monkeypatch.setattr(
        Normalisation, "numbers", lambda self, channels: (used.append(self), numbers(self, channels))[1]
    )
    expected = measured(own[0].images)
    assert expected != measured(own[1].images)
    run = crlf.pretrain(Recipe(data="dark", **TINY), out=tmp_path / "run", device="cpu")
    assert json.loads(run.file(RECIPE).read_text())["normalisation"] == {
        "mean": list(expected.mean), "std": list(expected.std),
    }  # fmt: skip
    Image.fromarray(own[1].images[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    monkeypatch.setattr(export, "compare", lambda *given: {"max_difference": 0.0, "largest_number": 1.0})
    stages = {
        "embed": lambda: crlf.embed(run, device="cpu"),
        "embed new": lambda: crlf.embed(run, tmp_path / "one.png", out=tmp_path / "t.parquet", device="cpu"),
        "probe": lambda: crlf.probe(run, probes=probes, device="cpu"),
        "load": lambda: crlf.load(run, device="cpu").encode(own[1].images),
        "search": lambda: crlf.search(run, tmp_path / "one.png", k=1, device="cpu"),
        "finetune": lambda: crlf.finetune(run, "dark", mode="full", epochs=1, device="cpu"),
        "classify": lambda: crlf.classify(run, [str(tmp_path / "one.png")], device="cpu"),
        "export": lambda: crlf.export(run, format="torch"),
        "doctor": lambda: crlf.doctor(run),
    }
    assert used and set(used) == {expected}
    for name, stage in stages.items():
        used.clear()
        stage()
        assert used and set(used) == {expected}, name
    np.testing.assert_allclose(
        crlf.load(run, device="cpu").encode(own[0].images), run.array("train_emb.npy"), atol=1e-5
    )


def test_given_numbers_are_kept_and_a_known_data_sets_are_published(tmp_path: Path, own):
    given = Normalisation(mean=(0.2,), std=(0.1,))
    run = crlf.pretrain(Recipe(data="dark", normalisation=given, **TINY), out=tmp_path / "a", device="cpu")
    assert run.recipe.normalisation == given
    shapes = Recipe(data="shapes", subset=64, **TINY)
    assert crlf.pretrain(shapes, out=tmp_path / "b", device="cpu").recipe.normalisation == PUBLISHED["shapes"]
    assert RECIPES["default"].resolved(own[0]).normalisation == PUBLISHED["cifar10"]  # whatever its first images are


def test_gray_and_many_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: None):
    for channels in (1, 5):
        part = ImageSet(dark(64, channels=channels), None, (), [str(i) for i in range(64)])
        monkeypatch.setitem(sources.SOURCES, "odd", lambda data_dir, part=part: (part, part))
        run = crlf.pretrain(Recipe(data="odd", **TINY), out=tmp_path / str(channels), device="cpu")
        assert run.recipe.normalisation == measured(part.images) and len(run.recipe.normalisation.mean) == channels


def test_a_flat_channel_is_said(tmp_path: Path, own, capsys):
    own[0].images[:, 2] = 9
    crlf.pretrain(Recipe(data="dark", **TINY), out=tmp_path / "run", device="cpu")
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warned == ["warning: a channel hardly varies in the images; its deviation is set to 0.004"]


def test_a_resumed_run_keeps_its_numbers(tmp_path: Path, own):
    """Those of a run from before: of its data set, whatever its images are."""
    recipe = Recipe(data="dark", **TINY)
    run = crlf.pretrain(
        dataclasses.replace(recipe, normalisation=PUBLISHED["cifar10"]), out=tmp_path / "run", device="cpu"
    )
    before = {name: run.file(name).read_bytes() for name in (RECIPE, ENCODER, LOSS)}
    again = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu", resume=True)
    assert {name: again.file(name).read_bytes() for name in before} == before
    other = dataclasses.replace(recipe, normalisation=PUBLISHED["svhn"])
    with pytest.raises(InputError, match=r"^(mean|std) is .*, but the run to resume in .* has "):
        crlf.pretrain(other, out=tmp_path / "run", device="cpu", resume=True)


def test_a_run_from_before_is_read(tmp_path: Path, own):
    """Its mean and deviation are among the settings of the views."""
    run = crlf.embed(crlf.pretrain(Recipe(data="dark", **TINY), out=tmp_path / "run", device="cpu"), device="cpu")
    rows, recipe = run.array("train_emb.npy"), run.recipe

    def old(settings: dict) -> dict:
        own = settings.pop("normalisation")
        return settings | {"augmentation": settings["augmentation"] | own}

    write_json(run.file(RECIPE), old(run.settings))
    values = run.tensors(CHECKPOINT)
    save_tensors(run.file(CHECKPOINT), values | {"recipe": old(values["recipe"])})
    assert set(run.settings["augmentation"]) >= {"mean", "std"} and run.recipe == recipe
    crlf.pretrain(Recipe(data="dark", **TINY), out=tmp_path / "run", device="cpu", resume=True)
    np.testing.assert_array_equal(crlf.embed(run, device="cpu").array("train_emb.npy"), rows)
    assert Recipe.from_dict(run.settings) == recipe


# Flags


def given(*arguments: str) -> Recipe:
    found = {}

    def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
        found["recipe"] = recipe

    assert cli.command_line(stage, list(arguments), "stage") == 0
    return found["recipe"]


def test_the_flags_keep_their_names(tmp_path: Path, capsys):
    assert given().normalisation == Normalisation()
    assert given("--mean", "0.5", "--std", "0.25").normalisation == Normalisation(mean=(0.5,), std=(0.25,))
    three = ["--mean", "0.1", "0.2", "0.3", "--std", "1", "2", "3"]
    assert given(*three).normalisation == Normalisation(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    with pytest.raises(AssertionError):
        given("--mean", "0.5")
    [line] = capsys.readouterr().err.splitlines()
    assert line == "stage: error: mean and std must have the same number of values, not (0.5,) and ()"
    settings = dataclasses.replace(RECIPES["default"], normalisation=PUBLISHED["svhn"]).to_dict()
    write_json(tmp_path / "recipe.json", settings)
    assert given("--recipe", str(tmp_path / "recipe.json"), "--mean", "--std").normalisation == Normalisation()
