"""Pretraining: from images to a trained encoder, in a run folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

from crlf.augmentation import view_size
from crlf.data import ImageSet, require_there
from crlf.data.given import Given
from crlf.normalisation import FLOOR
from crlf.recipe import RECIPES, Recipe
from crlf.runs import checkpoints
from crlf.runs.run import Run, claim, require_place
from crlf.runtime import distributed
from crlf.runtime.devices import memory_there, pick_device
from crlf.text import PYTHON_ONLY, duration, percent, size
from crlf.training.compile import require_compilable
from crlf.training.cost import Estimate, embedding_bytes, estimate
from crlf.training.loop import train
from crlf.training.monitor import knn_curve
from crlf.training.prepare import fitted
from crlf.training.results import finish, save_views
from crlf.training.state import State, completed, has_moved, note_move
from crlf.training.teaching import teach
from crlf.training.trackers import require_tracker
from crlf.training.weights.sources import Weights


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
        asked, recipe, images, weights, teacher = fitted(recipe, data, data_dir, Run(out) if resume else None)
        distributed.require_share(recipe.batch_size, place)
        require_compilable(recipe, place)
        features = teach(recipe, teacher, images, data_dir, place) if teacher else None
        state = State(recipe, images, place, weights, features)  # it may refuse the images: no folder is claimed yet
    space = 5 * embedding_bytes(recipe, images) // 2
    run = distributed.by_first(lambda: claimed(out, recipe, resume, overwrite, space, images))
    try:
        if resume and checkpoints.kept(run):
            state.load(run)
        if distributed.rank() == 0:
            save_views(run, recipe, images)
            tell_choices(asked, recipe, images)
            tell_start(run, recipe, state, weights)
            if teacher:
                run.update_scores(teacher=teacher.origin)
            tell_cost(state, images)
        if recipe.as_given:
            distributed.by_first(lambda: finish(run, recipe, images, state))
            return run
        knn = knn_curve(recipe, images, place)
        if knn and weights:
            knn.start(state.method.encoder)
        train(run, recipe, images, state, started, track, knn)
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


def tell_choices(asked: Recipe, recipe: Recipe, images: ImageSet) -> None:
    """Say what nobody asked for and the images set."""
    batch, count = recipe.batch_size, f"{len(images):,} images"
    if images.hold_out == 0:
        tested = f"every one of the {count} is tested, by cross-validation"
        print(f"{tested} (--hold-out 0.1 holds a tenth out)", file=sys.stderr)
    if batch == len(images) < asked.batch_size:
        print(f"a batch is all {count}: --batch-size sets another", file=sys.stderr)
    if recipe.as_given:
        return
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
        print(f"chosen for these {count}: {', '.join(chosen)}", file=sys.stderr)


def tell_start(run: Run, recipe: Recipe, state: State, weights: Weights | None) -> None:
    """Say, and note, which trained weights the encoder starts from, and how it goes on from them."""
    if weights is None:
        return
    run.update_scores(started_from=weights.origin)
    licence = f"; licence {weights.licence}, which binds what comes of them" if weights.licence else ""
    print(f"starts from {weights.source}: {state.match}{licence}", file=sys.stderr)
    if not recipe.as_given:
        how = f"{recipe.optim.optimizer}, learning rate {recipe.optim.lr:g} (--optimizer, --lr)"
        more = ["batch norms keep what they remember (--norms)"] * (recipe.start.norms == "keep")
        more += [f"the encoder lies {percent(recipe.start.mix)} of the way from them (--mix)"] * (recipe.start.mix < 1)
        print("; ".join([f"goes on from them by {how}", *more]), file=sys.stderr)


def tell_cost(state: State, data: ImageSet) -> None:
    """Say what the encoder chose and what the run will take, and when that is more memory than there is."""
    if state.share >= 1 or state.recipe.as_given:
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
