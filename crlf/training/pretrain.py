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
from crlf.runs.run import Resume, Run, claim, resumes
from crlf.runtime import distributed
from crlf.runtime.devices import memory_there, pick_device
from crlf.text import PYTHON_ONLY, duration, percent, size
from crlf.training.agreement import require_agreement, require_same_step
from crlf.training.compile import require_compilable
from crlf.training.cost import Estimate, embedding_bytes, estimate
from crlf.training.knn_curve import knn_curve
from crlf.training.loop import train
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
    resume: Resume = False,
    overwrite: bool = False,
    track: str = "none",
) -> Run:
    """Train an encoder without labels. With torchrun, all processes train together.

    Args:
        recipe: the settings of the run.
        data: images in memory, used in place of those that the recipe names: an `ImageSet` or an array
            (crlf.data.given).
        out: the run folder; it is created if needed.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the first available of cuda, mps and cpu.
        resume: continue the run in --out from its checkpoint. `--resume auto` starts one if there is none, so that the
            same command can be given again and again.
        overwrite: replace the run in --out.
        track: also send the log to tensorboard, wandb or mlflow, which store it on this machine.

    Returns:
        The run. Its folder holds the encoder, the losses, the log, the recipe and the checkpoint.

    Raises:
        InputError: a wrong setting, data set or folder, a loss that is not finite, or a collapse if the recipe asks to
            stop at it. The last checkpoint stays.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1, after a checkpoint was written.
    """
    started = time.perf_counter()
    require_tracker(track)
    place = distributed.own_device(pick_device(device))
    # Checked before the images are decoded, which may take long; `claim` checks again.
    again = distributed.by_first(lambda: resumes(out, resume, overwrite))
    if again and data is None:
        require_there(recipe.data)
    with distributed.first_alone():
        asked, recipe, images, weights, teacher = fitted(recipe, data, data_dir, Run(out) if again else None)
        distributed.require_share(recipe.batch_size, place)
        require_compilable(recipe, place)
        features = teach(recipe, teacher, images, data_dir, place) if teacher else None
        state = State(recipe, images, place, weights, features)  # may refuse the images, before a folder is claimed
    require_agreement(recipe, images, state.pixels)
    space = 5 * embedding_bytes(recipe, images) // 2
    run = distributed.by_first(lambda: claimed(out, recipe, again, overwrite, space, images))
    try:
        with distributed.first_alone():
            if again and checkpoints.kept(run):
                state.load(run)
        require_same_step(state.step)
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
    """Claim the run folder, see `claim`. If the images of a resumed run were moved and are the same, note the new path
    in its recipe."""
    moved = resume and has_moved(Run(out), recipe.data, images)
    same = {"data": recipe.data} if moved else {}
    run = claim(out, recipe.to_dict(), resume, overwrite, space, lambda there: completed(there) | same)
    if moved:
        note_move(run, recipe.data)
    return run


def tell_choices(asked: Recipe, recipe: Recipe, images: ImageSet) -> None:
    """Print the settings that were chosen to suit the images."""
    batch, count = recipe.batch_size, f"{len(images):,} images"
    if images.hold_out == 0:
        tested = f"all {count} will be tested by cross-validation"
        print(f"{tested} (--hold-out 0.1 holds out a tenth instead)", file=sys.stderr)
    if batch == len(images) < asked.batch_size:
        print(f"each batch holds all {count} (--batch-size sets another size)", file=sys.stderr)
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
        chosen.append(f"{recipe.epochs:,} epochs = {steps:,} steps (--epochs or --minutes)")
    if chosen:
        print(f"chosen for these {count}: {', '.join(chosen)}", file=sys.stderr)


def tell_start(run: Run, recipe: Recipe, state: State, weights: Weights | None) -> None:
    """Print and record which trained weights the encoder starts from, and how it is trained further."""
    if weights is None:
        return
    run.update_scores(started_from=weights.origin)
    licence = f"; licence {weights.licence}, which also covers the trained encoder" if weights.licence else ""
    print(f"starts from {weights.source}: {state.match}{licence}", file=sys.stderr)
    if not recipe.as_given:
        how = f"{recipe.optim.optimizer}, learning rate {recipe.optim.lr:g} (--optimizer, --lr)"
        more = ["batch norms keep their statistics (--norms)"] * (recipe.start.norms == "keep")
        more += [f"final weights {percent(recipe.start.mix)} of the way to the trained ones (--mix)"] * (
            recipe.start.mix < 1
        )
        print("; ".join([f"trains with {how}", *more]), file=sys.stderr)


def tell_cost(state: State, data: ImageSet) -> None:
    """Print what the encoder chose and what the run will cost; warn if it needs more memory than there is."""
    if state.share >= 1 or state.recipe.as_given:
        return
    if choice := getattr(state.method.encoder, "choice", ""):
        print(f"encoder {state.recipe.encoder}: {choice}", file=sys.stderr)
    if FLOOR in state.recipe.normalisation.std:
        print(f"warning: a channel hardly varies in the images; its deviation is set to {FLOOR}", file=sys.stderr)
    cost = estimate(state.recipe, data, state.method, state.optimizers, state.share)
    print(cost, file=sys.stderr)
    if 0 < (side := data.images.shape[3]) < data.reach:
        print(larger(cost, side, data.reach, state.recipe), file=sys.stderr)
    there = memory_there(state.device)
    if there and cost.memory > there:
        advice = "lower --batch-size or --views to need less"
        print(f"warning: that is more memory than the {size(there)} available: {advice}", file=sys.stderr)


def larger(cost: Estimate, side: int, reach: int, recipe: Recipe) -> str:
    """What training at the size that half of the images reach would cost: the cost grows with the number of pixels."""
    times = (reach / side) ** 2
    price = f"allow {times:.0f} times fewer steps" if recipe.minutes else f"take {duration(times * cost.seconds)}"
    return f"images are read at {side} px; half of them have {reach} or more: --image-size {reach} would {price}"
