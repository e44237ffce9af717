"""Loads the images of a run and fills in the settings of the recipe that depend on them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from crlf.data import SOURCES, ImageSet, ImageSettings, given, load_for_pretraining, named
from crlf.data.encoded import Encoded
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
    """The recipe as given."""
    recipe: Recipe
    """The recipe that the run keeps, with every value set."""
    images: ImageSet
    weights: Weights | None
    """The trained weights that the encoder starts from; None for random weights."""
    teacher: Weights | None
    """The teacher of a `TaughtMethod`."""


def fitted(recipe: Recipe, data: Given | None, data_dir: str | Path | None, before: Run | None = None) -> Fitted:
    """Load the images of a recipe, and set the values of the recipe that were not given to suit them.

    Args:
        recipe: the recipe as given.
        data: images in memory, used in place of those that the recipe names.
        data_dir: the folder of the named data sets.
        before: the run to resume, which provides the values that the recipe does not give.

    Raises:
        InputError: the images are missing, too few or all the same, or do not suit the recipe.
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
    """The trained weights that a recipe starts from; None if the run to resume has a checkpoint with all weights."""
    if not recipe.start.init or (before and checkpoints.kept(before)):
        return None
    return read(recipe.start.init)


def of_weights(recipe: Recipe, weights: Weights | None) -> Recipe:
    """Set the values of a recipe that were not given to those of its trained weights.

    These are the network, the mean and standard deviation and, if nothing is trained, the image size. The default
    optimizer, which would overwrite trained weights in a few steps, is replaced by a gentler one.

    Raises:
        InputError: the network of the weights is not known.
    """
    if weights is None:
        return recipe
    if not weights.encoder and isinstance(recipe.encoder, Unasked):
        how = f"`crlf pretrain PATH --encoder {TIMM}NAME --init {weights.source}`"
        raise InputError(f"weights {weights.source!r} do not name their network: name it with {how}")
    if weights.encoder and isinstance(recipe.encoder, Unasked):
        recipe = dataclasses.replace(recipe, encoder=weights.encoder)
    if recipe.encoder.startswith(ONNX) and not recipe.as_given:
        how = "--epochs 0 uses it unchanged, --method distill --teacher learns from it"
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
    """The mean and standard deviation that timm lists for a network's trained weights; empty for other networks."""
    if not encoder.startswith(TIMM):
        return Normalisation()
    import timm  # slow to import

    cfg = timm.get_pretrained_cfg(encoder.removeprefix(TIMM), allow_unregistered=False)
    return Normalisation(mean=tuple(cfg.mean), std=tuple(cfg.std)) if cfg else Normalisation()


def with_images(recipe: Recipe, data: Given | None, data_dir: str | Path | None) -> tuple[Recipe, ImageSet]:
    """The images to learn from, and the recipe with their name and how they were read."""
    if data is None:
        found = load_for_pretraining(recipe.data, data_dir, asked_of(recipe), recipe.subset)
        share = found.hold_out if found.hold_out >= 0 else recipe.images.hold_out
        if share == 0 and supervised(recipe) and found.hold_out == 0:
            why = "images it learned from cannot test it: --hold-out 0.1 holds out a tenth"
            raise InputError(f"hold_out must not be 0 for method {recipe.method!r}, which learns from labels: {why}")
        size = recipe.images.image_size
        side = min(found.images.shape[2:]) if found.reach and isinstance(size, Unasked) else size
        white = recipe.images.white or found.white
        decode = "stream" if isinstance(found.images, Encoded) else recipe.images.decode
        read_as = dataclasses.replace(recipe.images, white=white, hold_out=share, image_size=side, decode=decode)
        return dataclasses.replace(recipe, images=read_as), found
    images = given.image_set(data, recipe.images)
    return dataclasses.replace(recipe, data=given.name_of(images)), images.first(recipe.subset)


def asked_of(recipe: Recipe) -> ImageSettings:
    """The image settings; a supervised method on your own files always holds images out."""
    if of_ones_own(recipe) and supervised(recipe) and recipe.images.hold_out < 0:
        return dataclasses.replace(recipe.images, hold_out=HELD_OUT)
    return recipe.images


def of_ones_own(recipe: Recipe) -> bool:
    return named(recipe.data) not in SOURCES


def supervised(recipe: Recipe) -> bool:
    return issubclass(METHODS[recipe.method], SupervisedMethod)


def as_before(recipe: Recipe, run: Run) -> Recipe:
    """Set the values that the recipe does not give to those of the run to resume: values that depend on the images, and
    the share of them that is held out."""
    if not run.file(RECIPE).is_file():
        return recipe
    before = run.recipe
    recipe = like(recipe, before)
    if recipe.images.decode == "auto":
        recipe = dataclasses.replace(recipe, images=dataclasses.replace(recipe.images, decode=before.images.decode))
    if recipe.images.hold_out >= 0 or not of_ones_own(recipe):
        return recipe
    return dataclasses.replace(recipe, images=dataclasses.replace(recipe.images, hold_out=before.images.hold_out))


def without_copies(recipe: Recipe, data: ImageSet) -> ImageSet:
    """The images to learn from, without copies if the recipe asks for that."""
    found = data.without_copies() if recipe.drop_copies else data
    if len(found) < len(data) and distributed.rank() == 0:
        print(f"copies left out: {len(data) - len(found):,} of {len(data):,} images", file=sys.stderr)
    return found


def resolved(recipe: Recipe, data: ImageSet, before: Run | None) -> Recipe:
    """The recipe with mean and standard deviation: those of the run to resume, else those of `Recipe.resolved`."""
    if before and not recipe.normalisation.known and before.file(RECIPE).is_file():
        recipe = dataclasses.replace(recipe, normalisation=before.recipe.normalisation)
    return recipe.resolved(data)


def require_labels(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError if the method learns from labels and the images have none."""
    if supervised(recipe) and data.labels is None:
        raise InputError(f"method {recipe.method!r} learns from labels, but the data set {recipe.data!r} has none")


def require_difference(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError if all images are the same: there is nothing to learn from them."""
    first = data.images[:1]
    if all(torch.equal(part, first.expand_as(part)) for part in data.images.split(100)):
        raise InputError(f"images of {recipe.data!r} must differ, but all {len(data):,} are the same")
