"""What nobody asked for follows the images and their domain: sizes, batch and epochs for your own files, and the views.

What somebody asked for stays, and so does everything of data sets known by name and of arrays.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from terminal import PIPES, here, refused
from tiny_images import encoded, pixels

import crlf
from crlf.augmentation import ViewSettings
from crlf.data import ImageSettings, load
from crlf.data.files import folder as files
from crlf.defaults import DOMAINS, LARGEST, OF_FILES, STEPS, Unasked, unasked
from crlf.encoders import EmbeddingSettings
from crlf.recipe import RECIPES, Recipe, like, settled
from crlf.runs.run import Run

pytestmark = pytest.mark.usefixtures("cache", "narrow")
QUICK = ("--views", "2", "--device", "cpu")


def put(folder: Path, count: int, side: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i, side, side), "PNG"))
    return folder


def trained(tmp_path: Path, data: Path, *flags: str) -> tuple[Run, str]:
    code, said = here(PIPES, "pretrain", str(data), "--out", str(tmp_path / "run"), *QUICK, *flags)
    assert code == 0, said
    return Run(tmp_path / "run"), said


def test_an_unasked_value_is_a_number_or_a_word():
    for value in (3, 0.5, "cnn"):
        marked = unasked(value)
        assert marked == value and isinstance(marked, Unasked) and json.loads(json.dumps(marked)) == value
        assert type(settled(dataclasses.make_dataclass("D", [("a", type(value))])(marked)).a) is type(value)


@pytest.mark.parametrize("side, chosen", [(20, 32), (70, 64), (100, 64), (140, 64)])
def test_files_are_read_small_where_nobody_asked_for_a_size(tmp_path: Path, side: int, chosen: int):
    data = str(put(tmp_path / "in", 3, side))
    assert load(data)[0].images.shape[2:] == (chosen, chosen) and chosen <= LARGEST
    reach = max((size for size in files.SIZES if size <= side), default=32)
    assert load(data, settings=ImageSettings(image_size=0))[0].images.shape[3] == reach
    assert load(data, settings=ImageSettings(image_size=96))[0].images.shape[3] == 96


def test_a_small_set_gets_enough_steps(tmp_path: Path):
    recipe = Recipe(data=str(tmp_path / "photos/"))
    small, large = recipe.for_images(1000), recipe.for_images(45_000)
    assert small.batch_size == large.batch_size == OF_FILES["batch_size"]
    assert STEPS <= small.epochs * small.steps_per_epoch(1000) < STEPS + 1000 // small.batch_size
    assert large.epochs == 10
    assert recipe.for_images(12).epochs == STEPS and recipe.for_images(12).batch_size == 12


def test_what_was_asked_for_stays(tmp_path: Path):
    photos = str(tmp_path / "photos/")
    asked = Recipe(data=photos, epochs=10, batch_size=128)
    assert asked.for_images(1000) == asked
    assert Recipe(data=photos, minutes=3.0).for_images(1000).epochs == 10
    for name, recipe in RECIPES.items():
        if name != "default":
            own = dataclasses.replace(recipe, data=photos)
            assert own.for_images(10_000) == own, name


def test_views_of_larger_files_are_smaller(tmp_path: Path):
    def resolution(side: int, **views: float) -> float:
        recipe = Recipe(
            data=str(tmp_path / "in/"), images=ImageSettings(image_size=side), augmentation=ViewSettings(**views)
        )
        return recipe.for_images(1000).augmentation.resolution

    assert resolution(32) == 0.75 and resolution(64) == resolution(128) == 0.5
    assert resolution(64, resolution=0.75) == 0.75


@pytest.mark.parametrize("data", ["cifar10", "photos.npy", "photos.npz", "array of 500 images of 3×64×64"])
def test_sets_known_by_name_and_arrays_are_as_before(data: str):
    recipe = Recipe(data=data)
    assert recipe.for_images(1000) is recipe and (recipe.batch_size, recipe.epochs) == (128, 10)


def test_the_run_keeps_what_was_chosen_and_says_it(tmp_path: Path):
    run, said = trained(tmp_path, put(tmp_path / "in", 70, 100), "--epochs", "1")
    recipe = run.recipe
    assert (recipe.images.image_size, recipe.batch_size, recipe.epochs) == (64, 64, 1)
    assert recipe.augmentation.resolution == 0.5
    assert "chosen for these 70 images: batches of 64 (--batch-size), views of 32 px (--resolution 0.5)\n" in said
    assert "images are read at 64 px; half of them have 96 or more: --image-size 96 would take " in said
    assert crlf.embed(run, device="cpu").array("train_emb.npy").shape[0] == 70


def test_the_epochs_that_were_chosen_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.recipe.STEPS", 6)
    run, said = trained(tmp_path, put(tmp_path / "in", 5, 16), "--batch-size", "2")
    assert run.recipe.epochs == 10 and "epochs, which are" not in said  # ten are more than enough
    monkeypatch.setattr("crlf.recipe.STEPS", 23)
    run, said = trained(tmp_path, tmp_path / "in", "--batch-size", "2", "--overwrite")
    assert run.recipe.epochs == 12
    assert "chosen for these 5 images: 12 epochs = 24 steps (--epochs or --minutes)\n" in said


def test_with_a_time_the_price_of_larger_images_is_steps(tmp_path: Path):
    _, said = trained(tmp_path, put(tmp_path / "in", 70, 130), "--minutes", "0.02")
    assert "half of them have 128 or more: --image-size 128 would allow 4 times fewer steps\n" in said


def test_a_run_goes_on_and_is_repeated_as_it_was(tmp_path: Path):
    """A run from before was of other sizes: its recipe holds, whatever the defaults are by now."""
    data = put(tmp_path / "in", 70, 100)
    before = ("--image-size", "0", "--batch-size", "70", "--epochs", "1")
    run, _ = trained(tmp_path, data, *before)
    assert run.recipe.images.image_size == 0 and crlf.embed(run, device="cpu")
    again = crlf.pretrain(Recipe(data=str(data), views=2), out=run.path, resume=True, device="cpu").recipe
    assert again == run.recipe and again.batch_size == 70
    repeated = tmp_path / "repeated"
    code, _ = here(
        PIPES, "pretrain", "--recipe", str(run.file("recipe.json")), "--out", str(repeated), "--device", "cpu"
    )
    assert code == 0 and Run(repeated).recipe == run.recipe


def test_like_takes_only_what_nobody_asked_for():
    other = Recipe(epochs=3, batch_size=7, augmentation=ViewSettings(crop_min=0.5, flip=0.1))
    found = like(Recipe(epochs=4, augmentation=ViewSettings(flip=0.2)), other)
    assert (found.epochs, found.batch_size, found.augmentation.crop_min, found.augmentation.flip) == (4, 7, 0.5, 0.2)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_sets_views_that_nobody_asked_for(name: str):
    views = Recipe(domain=name).augmentation
    for field in dataclasses.fields(ViewSettings):
        assert getattr(views, field.name) == DOMAINS[name].get(field.name, field.default), field.name
    asked = Recipe(domain=name, augmentation=ViewSettings(flip=0.3, hue=0.04, turn=0.0)).augmentation
    assert (asked.flip, asked.hue, asked.turn) == (0.3, 0.04, 0.0)
    assert Recipe.from_dict(Recipe(domain=name).to_dict()) == Recipe(domain=name)


def test_another_domain_takes_the_place_of_the_first():
    assert dataclasses.replace(Recipe(domain="satellite"), domain="photos") == Recipe()


def test_a_named_recipe_keeps_its_views_and_takes_the_rest_from_a_domain():
    named = dataclasses.replace(RECIPES["simclr-r18"], domain="microscopy", data="photos/").for_images(10_000)
    views = named.augmentation
    assert (views.resolution, views.grayscale, views.turn, views.hue) == (1.0, 0.1, 0.5, 0.05)
    own = dataclasses.replace(RECIPES["speedrun-knn90"], data="photos/", images=ImageSettings(image_size=64))
    assert own.for_images(10_000).augmentation.resolution == 0.75


def test_domains_are_what_they_say():
    photos, satellite, documents = (Recipe(domain=name).augmentation for name in ("photos", "satellite", "documents"))
    assert photos == ViewSettings() and (photos.turn, photos.vertical_flip) == (0, 0)
    assert (satellite.flip, satellite.vertical_flip, satellite.turn) == (0.5, 0.5, 0.5)
    assert (documents.flip, documents.vertical_flip, documents.turn) == (0, 0, 0)
    for name in ("satellite", "microscopy", "xray", "textures"):  # colour, or its absence, is what is looked at
        assert Recipe(domain=name).augmentation.grayscale == 0


def test_a_domain_on_the_command_line(tmp_path: Path):
    flags = ("--epochs", "1", "--image-size", "16", "--domain", "microscopy", "--hue", "0.2")
    run, _ = trained(tmp_path, put(tmp_path / "in", 6, 16), *flags)
    views = run.recipe.augmentation
    assert run.recipe.domain == "microscopy" and (views.turn, views.hue, views.crop_min) == (0.5, 0.2, 0.4)
    line = refused("pretrain", str(tmp_path / "in"), "--out", str(tmp_path / "two"), "--domain", "sattelite")
    assert "domain 'sattelite' is not known: choose from " in line and line.endswith("Did you mean 'satellite'?")


def test_a_quarter_turn_needs_square_images():
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 24), dtype=np.uint8)
    recipe = Recipe(augmentation=ViewSettings(turn=0.5), embedding=EmbeddingSettings(regions=1))
    with pytest.raises(crlf.InputError, match=r"turn must be 0, not 0\.5, for images of 16 × 24 px"):
        crlf.pretrain(recipe, data=images, out="never", device="cpu")
