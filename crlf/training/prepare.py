"""What a run learns from, and the recipe as these images settle it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from crlf.data import SOURCES, ImageSet, ImageSettings, given, load_for_pretraining, named
from crlf.data.files.class_folders import HELD_OUT
from crlf.data.given import Given
from crlf.defaults import OF_INIT, OF_START, Unasked
from crlf.encoders import TIMM
from crlf.encoders.onnx_file import ONNX
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe, filled, like, settled
from crlf.runs import checkpoints
from crlf.runs.run import RECIPE, Run
from crlf.runtime import distributed
from crlf.training.teaching import teacher_of
from crlf.training.weights.sources import Weights, read


class Fitted(NamedTuple):
    """A recipe and its images."""

    asked: Recipe
    """As it was asked for."""
    recipe: Recipe
    """As a run keeps it: every value is set."""
    images: ImageSet
    weights: Weights | None
    """What the encoder starts from, if not from random weights."""
    teacher: Weights | None
    """Whose features a `TaughtMethod` learns."""


def fitted(recipe: Recipe, data: Given | None, data_dir: str | Path | None, before: Run | None = None) -> Fitted:
    """The images that a recipe learns from, and the recipe with what nobody asked for as suits them.

    Args:
        data: images in memory, in place of those that the recipe names.
        data_dir: where a data set known by name lies.
        before: the run to resume, whose values are taken where the recipe asks for none.

    Raises:
        InputError: there are no such images, too few, or none that tell apart; or they do not suit the recipe.
    """
    weights = starting(recipe, before)
    recipe = of_weights(as_before(recipe, before) if before else recipe, weights)
    teacher = teacher_of(recipe, weights)
    asked, images = with_images(recipe, data, data_dir)
    images = without_copies(recipe, images)
    recipe = settled(asked.for_images(len(images)))
    recipe.steps_per_epoch(len(images))
    require_labels(recipe, images)
    require_difference(recipe, images)
    return Fitted(asked, resolved(recipe, images, before), images, weights, teacher)


def starting(recipe: Recipe, before: Run | None = None) -> Weights | None:
    """The trained weights that a recipe starts from; none where a checkpoint of the run to resume holds all weights."""
    if not recipe.start.init or (before and checkpoints.kept(before)):
        return None
    return read(recipe.start.init)


def of_weights(recipe: Recipe, weights: Weights | None) -> Recipe:
    """The recipe with what trained weights say of themselves, where nobody asked for anything else: their network, the
    mean and the deviation that they were trained with, and where nothing is trained the size of their images. An
    optimizer that would make new weights of them in a few steps gives way to a gentle one.

    Raises:
        InputError: the network is not known.
    """
    if weights is None:
        return recipe
    if not weights.encoder and isinstance(recipe.encoder, Unasked):
        how = f"`crlf pretrain PATH --encoder {TIMM}NAME --init {weights.source}` does"
        raise InputError(f"weights {weights.source!r} do not say which network they are of: {how}")
    if weights.encoder and isinstance(recipe.encoder, Unasked):
        recipe = dataclasses.replace(recipe, encoder=weights.encoder)
    if recipe.encoder.startswith(ONNX) and not recipe.as_given:
        how = "--epochs 0 uses it as it is, --method distill --teacher learns from it"
        raise InputError(f"weights {weights.source!r} are an ONNX file, which cannot be trained: {how}")
    if isinstance(recipe.optim.optimizer, Unasked):
        recipe = dataclasses.replace(recipe, optim=filled(recipe.optim, OF_INIT))
    if recipe.start.init:
        recipe = dataclasses.replace(recipe, start=filled(recipe.start, OF_START))
    if recipe.as_given and of_ones_own(recipe) and isinstance(recipe.images.image_size, Unasked):
        side = weights.image_size or recipe.images.image_size
        recipe = dataclasses.replace(recipe, images=dataclasses.replace(recipe.images, image_size=side))
    by = weights.normalisation if weights.normalisation.known else usual(recipe.encoder)
    known = recipe.normalisation.known or not by.known
    return recipe if known else dataclasses.replace(recipe, normalisation=by)


def usual(encoder: str) -> Normalisation:
    """What timm says that trained weights of this network were trained with; nothing of other networks."""
    if not encoder.startswith(TIMM):
        return Normalisation()
    import timm  # slow to import

    cfg = timm.get_pretrained_cfg(encoder.removeprefix(TIMM), allow_unregistered=False)
    return Normalisation(mean=tuple(cfg.mean), std=tuple(cfg.std)) if cfg else Normalisation()


def with_images(recipe: Recipe, data: Given | None, data_dir: str | Path | None) -> tuple[Recipe, ImageSet]:
    """The images to learn from, and the recipe that says which."""
    if data is None:
        found = load_for_pretraining(recipe.data, data_dir, asked_of(recipe), recipe.subset)
        share = found.hold_out if found.hold_out >= 0 else recipe.images.hold_out
        if share == 0 and supervised(recipe) and found.hold_out == 0:
            why = "what it learned cannot test it: --hold-out 0.1 holds a tenth out"
            raise InputError(f"method {recipe.method!r} learns from labels, so hold_out must not be 0, for {why}")
        size = recipe.images.image_size
        side = min(found.images.shape[2:]) if found.reach and isinstance(size, Unasked) else size
        white = recipe.images.white or found.white
        read_as = dataclasses.replace(recipe.images, white=white, hold_out=share, image_size=side)
        return dataclasses.replace(recipe, images=read_as), found
    images = given.image_set(data, recipe.images)
    return dataclasses.replace(recipe, data=given.name_of(images)), images.first(recipe.subset)


def asked_of(recipe: Recipe) -> ImageSettings:
    """How the images are read: where their labels are learned some are held out, however few there are."""
    if of_ones_own(recipe) and supervised(recipe) and recipe.images.hold_out < 0:
        return dataclasses.replace(recipe.images, hold_out=HELD_OUT)
    return recipe.images


def of_ones_own(recipe: Recipe) -> bool:
    return named(recipe.data) not in SOURCES


def supervised(recipe: Recipe) -> bool:
    return issubclass(METHODS[recipe.method], SupervisedMethod)


def as_before(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with what the run to resume has, where it asks for nothing: values that the images set, and the share
    of them that is held out."""
    if not run.file(RECIPE).is_file():
        return recipe
    before = run.recipe
    recipe = like(recipe, before)
    if recipe.images.hold_out >= 0 or not of_ones_own(recipe):
        return recipe
    return dataclasses.replace(recipe, images=dataclasses.replace(recipe.images, hold_out=before.images.hold_out))


def without_copies(recipe: Recipe, data: ImageSet) -> ImageSet:
    """The images to learn from: each once, where the recipe asks for that."""
    found = data.without_copies() if recipe.drop_copies else data
    if len(found) < len(data) and distributed.rank() == 0:
        print(f"copies that are left out: {len(data) - len(found):,} of {len(data):,} images", file=sys.stderr)
    return found


def resolved(recipe: Recipe, data: ImageSet, before: Run | None) -> Recipe:
    """The recipe with a mean and a deviation: those that the run to resume has, else those of `Recipe.resolved`."""
    if before and not recipe.normalisation.known and before.file(RECIPE).is_file():
        recipe = dataclasses.replace(recipe, normalisation=before.recipe.normalisation)
    return recipe.resolved(data)


def require_labels(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError when the method is given labels and the images have none."""
    if supervised(recipe) and data.labels is None:
        raise InputError(f"method {recipe.method!r} learns from labels, but the data set {recipe.data!r} has none")


def require_difference(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError when all images are one: to tell them apart is all that there is to learn."""
    first = data.images[:1]
    if all(torch.equal(part, first.expand_as(part)) for part in data.images.split(100)):
        raise InputError(f"images of {recipe.data!r} must differ, but all {len(data):,} are the same")
