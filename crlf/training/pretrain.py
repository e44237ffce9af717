"""Pretraining: from images to a trained encoder, in a run folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import torch

from crlf.augmentation import view_size
from crlf.data import SOURCES, ImageSet, ImageSettings, given, load_for_pretraining, named, require_there
from crlf.data.files.class_folders import HELD_OUT
from crlf.data.given import Given
from crlf.defaults import Unasked
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.normalisation import FLOOR
from crlf.recipe import RECIPES, Recipe, like, settled
from crlf.runs import checkpoints
from crlf.runs.run import RECIPE, Run, claim, require_place
from crlf.runtime import distributed
from crlf.runtime.devices import memory_there, pick_device
from crlf.text import PYTHON_ONLY, duration, size
from crlf.training.compile import require_compilable
from crlf.training.cost import Estimate, embedding_bytes, estimate
from crlf.training.loop import train
from crlf.training.monitor import knn_curve
from crlf.training.results import save_views
from crlf.training.state import State, completed, has_moved, note_move
from crlf.training.trackers import require_tracker


@distributed.together()
def pretrain(
    recipe: Recipe = RECIPES["default"],
    *,
    data: Annotated[Given | None, PYTHON_ONLY] = None,
    out: str | Path = "simclr_output",
    data_dir: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    track: str = "none",
) -> Run:
    """Train an encoder without labels; under torchrun on all of its processes, each of which calls this.

    Args:
        recipe: every setting of the run.
        data: images in memory, in place of those that the recipe names: an `ImageSet`, or an array (crlf.data.given).
        out: the run folder, made if need be.
        data_dir: where a data set known by name lies; by default the cache.
        device: "cpu", "cuda", "mps", or "auto" for the first that is there of cuda, mps and cpu.
        resume: continue the run in `out` from its checkpoint.
        overwrite: remove the run in `out` first.
        track: what the log goes to as well: tensorboard, wandb or mlflow; on this machine, see trackers.py.

    Returns:
        The run; its folder now holds the encoder, the losses, the log, the recipe and the checkpoint.

    Raises:
        InputError: a wrong setting, data set or folder, a loss that is not finite, or a collapse that the recipe asks
            to stop at; nothing is lost.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    started = time.perf_counter()
    require_tracker(track)
    place = distributed.own_device(pick_device(device))
    # Before the images are decoded, which may take long; `claim` looks again.
    distributed.by_first(lambda: require_place(out, resume, overwrite))
    if resume and data is None:
        require_there(recipe.data)
    with distributed.first_alone():
        asked, images = with_images(as_before(recipe, Run(out)) if resume else recipe, data, data_dir)
        images = without_copies(recipe, images)
        recipe = settled(asked.for_images(len(images)))
        recipe.steps_per_epoch(len(images))
        recipe = resolved(recipe, images, Run(out), resume)
        require_labels(recipe, images)
        require_difference(recipe, images)
        distributed.require_share(recipe.batch_size, place)
        require_compilable(recipe, place)
        state = State(recipe, images, place)  # before the folder is claimed: an encoder may refuse the images
    space = 5 * embedding_bytes(recipe, images) // 2
    run = distributed.by_first(lambda: claimed(out, recipe, resume, overwrite, space, images))
    try:
        if resume and checkpoints.kept(run):
            state.load(run)
        if distributed.rank() == 0:
            if images.hold_out == 0:
                tested = f"every one of the {len(images):,} images is tested, by cross-validation"
                print(f"{tested} (--hold-out 0.1 holds a tenth out)", file=sys.stderr)
            save_views(run, recipe, images)
            tell_choices(asked, recipe, images)
            tell_cost(state, images)
        train(run, recipe, images, state, started, track, knn_curve(recipe, images, place))
    finally:
        run.release()
    return run


def claimed(out: str | Path, recipe: Recipe, resume: bool, overwrite: bool, space: int, images: ImageSet) -> Run:
    """The folder as the place of the run, see `claim`. A run to resume may have its images elsewhere by now: where they
    are the same, its recipe says so from here on."""
    moved = resume and has_moved(Run(out), recipe.data, images)
    same = {"data": recipe.data} if moved else {}
    run = claim(out, recipe.to_dict(), resume, overwrite, space, lambda there: completed(there) | same)
    if moved:
        note_move(run, recipe.data)
    return run


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


def resolved(recipe: Recipe, data: ImageSet, run: Run, resume: bool) -> Recipe:
    """The recipe with a mean and a deviation: those that the run to resume has, else those of `Recipe.resolved`."""
    if resume and not recipe.normalisation.known and run.file(RECIPE).is_file():
        recipe = dataclasses.replace(recipe, normalisation=run.recipe.normalisation)
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


def tell_choices(asked: Recipe, recipe: Recipe, images: ImageSet) -> None:
    """Say what nobody asked for and the images set."""
    batch, count = recipe.batch_size, f"{len(images):,} images"
    if batch == len(images) < asked.batch_size:
        print(f"a batch is all {count}: --batch-size sets another", file=sys.stderr)
    chosen = []
    if batch != asked.batch_size and batch != len(images):
        chosen.append(f"batches of {batch} (--batch-size)")
    if recipe.augmentation.resolution != asked.augmentation.resolution:
        side = view_size(images.images.shape[3], recipe.augmentation)
        chosen.append(f"views of {side} px (--resolution {recipe.augmentation.resolution:g})")
    if recipe.epochs != asked.epochs:
        steps = recipe.epochs * recipe.steps_per_epoch(len(images))
        chosen.append(f"{recipe.epochs:,} epochs, which are {steps:,} steps (--epochs, or --minutes)")
    if chosen:
        print(f"chosen for {count} of one's own: {', '.join(chosen)}", file=sys.stderr)


def tell_cost(state: State, data: ImageSet) -> None:
    """Say what the encoder chose and what the run will take, and when that is more memory than there is."""
    if state.share >= 1:
        return
    if choice := getattr(state.method.encoder, "choice", ""):
        print(f"encoder {state.recipe.encoder}: {choice}", file=sys.stderr)
    if FLOOR in state.recipe.normalisation.std:
        print(f"warning: a channel of the images hardly varies: it is divided by {FLOOR} all the same", file=sys.stderr)
    cost = estimate(state.recipe, data, state.method, state.optimizers, state.share)
    print(cost, file=sys.stderr)
    if 0 < (side := data.images.shape[3]) < data.reach:
        print(larger(cost, side, data.reach, state.recipe), file=sys.stderr)
    there = memory_there(state.device)
    if there and cost.memory > there:
        advice = "a smaller --batch-size or fewer --views need less"
        print(f"warning: that is more memory than the {size(there)} that are there: {advice}", file=sys.stderr)


def larger(cost: Estimate, side: int, reach: int, recipe: Recipe) -> str:
    """What images of the size that half of them reach would cost, in words: products grow with the pixels."""
    times = (reach / side) ** 2
    price = f"get {times:.0f} times fewer steps" if recipe.minutes else f"take {duration(times * cost.seconds)}"
    return f"images are read at {side} px, though half of them reach {reach}: --image-size {reach} would {price}"
