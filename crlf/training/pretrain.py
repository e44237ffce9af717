"""Pretraining: the loop from images to a trained encoder, and what it saves."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crlf import encoders
from crlf.augmentation import Views, denormalise, normalise, view_size
from crlf.data import ImageSet, load_for_pretraining
from crlf.data.loader import batches
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod, training_flops
from crlf.optim import OPTIMIZERS, schedule, set_rates
from crlf.recipe import RECIPES, Recipe
from crlf.runs import checkpoints
from crlf.runs.run import ENCODER, LOSS, VIEWS, Run, claim, difference, save_array, save_tensors
from crlf.runtime import distributed
from crlf.runtime.devices import autocast, describe, dtype_of, keep_freed_memory, memory_there, pick_device, wait_for
from crlf.runtime.interrupts import Interrupted, stop_requests
from crlf.runtime.seeding import generator
from crlf.text import size
from crlf.training.budget import ByClock, BySteps
from crlf.training.compile import compiled, new_step, require_graphs
from crlf.training.cost import embedding_bytes, estimate
from crlf.training.evaluation import KnnCurve, knn_curve
from crlf.training.gradients import gradients
from crlf.training.monitor import Watch, gradient_norm
from crlf.training.progress import Progress
from crlf.training.trackers import require_tracker, tracked

LIKELY = "a learning rate that is too high, a temperature that is too low, or images that are not finite"


@distributed.together()
def pretrain(
    recipe: Recipe = RECIPES["default"],
    *,
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
    keep_freed_memory()
    require_tracker(track)
    place = distributed.own_device(pick_device(device))
    with distributed.first_alone():
        data = load_for_pretraining(recipe.data, data_dir, recipe.images, recipe.subset)
        recipe.steps_per_epoch(len(data))
        require_labels(recipe, data)
        require_difference(recipe, data)
        distributed.require_share(recipe.batch_size, place)
        require_graphs(recipe.compile, place)
        state = State(recipe, data, place)  # before the folder is claimed: an encoder may refuse the images
    space = 5 * embedding_bytes(recipe, data) // 2
    run = distributed.by_first(lambda: claim(out, recipe.to_dict(), resume, overwrite, space, completed))
    try:
        if resume and checkpoints.kept(run):
            state.load(run)
        if distributed.rank() == 0:
            save_views(run, recipe, data)
            tell_cost(state, data)
        train(run, recipe, data, state, started, track, knn_curve(recipe, data, place))
    finally:
        run.release()
    return run


def completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older run; what was not a setting yet was as the default is."""
    return Recipe.from_dict(recipe).to_dict()


def require_labels(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError when the method is given labels and the images have none."""
    if issubclass(METHODS[recipe.method], SupervisedMethod) and data.labels is None:
        raise InputError(f"method {recipe.method!r} learns from labels, but the data set {recipe.data!r} has none")


def require_difference(recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError when all images are one: to tell them apart is all that there is to learn."""
    first = data.images[:1]
    if all(torch.equal(part, first.expand_as(part)) for part in data.images.split(100)):
        raise InputError(f"images of {recipe.data!r} must differ, but all {len(data):,} are the same")


def tell_cost(state: State, data: ImageSet) -> None:
    """Say what the encoder chose and what the run will take, and when that is more memory than there is."""
    if state.share >= 1:
        return
    if choice := getattr(state.method.encoder, "choice", ""):
        print(f"encoder {state.recipe.encoder}: {choice}", file=sys.stderr)
    cost = estimate(state.recipe, data, state.method, state.optimizers, state.share)
    print(cost, file=sys.stderr)
    there = memory_there(state.device)
    if there and cost.memory > there:
        advice = "a smaller --batch-size or fewer --views need less"
        print(f"warning: that is more memory than the {size(there)} that are there: {advice}", file=sys.stderr)


def require_fit(encoder: torch.nn.Module, recipe: Recipe, data: ImageSet) -> None:
    """Raise InputError unless the encoder takes the images, as they are embedded in the end, and their views."""
    normalise(data.images[:1], recipe.augmentation)  # refuses statistics of another number of channels
    _, channels, height, width = data.images.shape
    encoders.trial(encoder, recipe.encoder, channels, height, width)
    height, width = (view_size(side, recipe.augmentation) for side in (height, width))
    advice = "; --resolution 1 makes the views as large as the images"
    encoders.trial(encoder, recipe.encoder, channels, height, width, advice)


class State:
    """What changes while a run trains, and so what a checkpoint holds."""

    def __init__(self, recipe: Recipe, data: ImageSet, device: torch.device):
        _, channels, height, width = data.images.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            encoder = encoders.build(recipe.encoder, channels, min(height, width))
            require_fit(encoder, recipe, data)
            self.method = METHODS[recipe.method](encoder, recipe.head).to(device)
        named = list(self.method.named_parameters())
        self.optimizers = OPTIMIZERS[recipe.optim.optimizer](named, recipe.optim.for_batch(recipe.batch_size))
        self.recipe = recipe
        self.device = device
        self.fingerprint = data.fingerprint()
        self.step = 0  # steps done
        self.seconds = 0.0  # of training so far
        self.first_step = 0.0  # seconds of this process's first step, with its compiling
        self.share = 0.0  # of the run that is done
        self.losses = torch.zeros(recipe.steps_per_epoch(len(data)), device=device)  # of this epoch's steps
        self.epoch_losses: list[float] = []  # the mean of each whole epoch

    def save(self, run: Run) -> None:
        values = {
            "recipe": self.recipe.to_dict(),
            "method": self.method.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "losses": self.losses,
            "fingerprint": self.fingerprint,
            **{name: getattr(self, name) for name in ("step", "seconds", "share", "epoch_losses")},
        }
        checkpoints.save(run, values)

    def load(self, run: Run) -> None:
        values = checkpoints.load(run)
        where = f"the checkpoint in {str(run.path)!r}"
        try:
            for name, here, there in difference(self.recipe.to_dict(), completed(values["recipe"])):
                raise InputError(f"{name} is {here!r}, but {where} has {there!r}")
            if values.get("fingerprint", self.fingerprint) != self.fingerprint:  # older ones have none
                raise InputError(f"the images of {self.recipe.data!r} are not those that {where} was trained on")
            self.method.load_state_dict(values["method"])
            for optimizer, saved in zip(self.optimizers, values["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if values["losses"].shape != self.losses.shape:
                raise ValueError(f"it holds the losses of {len(values['losses'])} steps, not {len(self.losses)}")
            self.losses.copy_(values["losses"])
            for name in ("step", "seconds", "share", "epoch_losses"):
                setattr(self, name, values[name])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is damaged: {str(error).splitlines()[0]}") from error


def train(
    run: Run,
    recipe: Recipe,
    data: ImageSet,
    state: State,
    started: float | None = None,
    track: str = "none",
    knn: KnnCurve | None = None,
) -> None:
    """The loop: batch, views, learning rate, loss, backward, step, log, save.

    Args:
        started: when the run did, on the clock of `time.perf_counter`; a time budget counts from then.
        track: one of crlf.training.trackers.TRACKERS.
        knn: what looks at the encoder now and then, and alone has the labels.
    """
    steps = len(state.losses)  # in an epoch
    course: BySteps | ByClock = BySteps(recipe.epochs * steps)
    if recipe.minutes:
        startup = 0.0 if started is None else time.perf_counter() - started
        [startup] = distributed.highest(startup)
        course = ByClock(60 * recipe.minutes - startup, state.step, state.share, state.seconds)
    labels = data.labels if isinstance(state.method, SupervisedMethod) else None  # no other method has them in reach
    method, optimizers, device = state.method.train(), state.optimizers, state.device
    in_precision = autocast(recipe.precision, device)
    make_view, watch = Views(recipe.augmentation), Watch(recipe, data.images, device)

    parts = distributed.parts_of(recipe.batch_size, recipe.micro_batch)  # of this process: the whole batch, as a rule
    first, end = parts[0].start, parts[-1].stop

    def rows_of(step: int) -> Tensor:
        data.require_unchanged()
        return batch_rows(step, len(data), recipe.batch_size, recipe.seed)[first:end]

    def views_of(part: range) -> Sequence[Tensor]:
        """The views of some of the batch's images, each (b, C, h, w)."""
        stream = generator(device, "views", recipe.seed, state.step)
        images = batch[part.start - first : part.stop - first]
        return make_view.of_part(images, recipe.views, stream, recipe.batch_size, part)

    with (
        stop_requests() as stop,
        tracked(track, run, state.step) as send,
        batches(data.images, rows_of, device) as pixels,
        compiled(method, make_view, recipe.compile),
        Progress(run, course, steps, recipe.batch_size, state.step, send) as progress,
    ):
        clock = time.perf_counter() - state.seconds
        while not course.over(state.step):
            i = state.step % steps
            batch = pixels[state.step]  # uint8 (B, C, H, W)
            share = course.share(state.step + 0.5)
            set_rates(
                optimizers,
                lr=schedule(share, recipe.optim.warmup, recipe.optim.final_lr),
                decay=schedule(share, 0.0, recipe.optim.final_weight_decay),
            )
            seen = None if labels is None else labels[rows_of(state.step)].to(device, non_blocking=True)
            new_step(recipe.compile)
            loss, stats = gradients(method, views_of, parts, seen, in_precision, recipe.frozen_norm)
            last = i == steps - 1
            if last:
                stats["gradient_norm"] = gradient_norm(method.parameters())
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            state.step += 1
            if recipe.compile != "none" and not state.first_step:
                wait_for(device)
                state.first_step = time.perf_counter() - clock - state.seconds
            method.after_step(course.share(state.step))
            state.losses[i] = loss
            stopped, due = distributed.highest(stop[0] if stop else 0, course.due(state.step))
            if last or stopped or due:
                require_finite(state.losses[: i + 1], state.step - i, run)  # waits for the device
                require_finite_weights(method, state.step, run)
                [state.seconds] = distributed.highest(time.perf_counter() - clock)
                course.look(state.step, state.seconds)
                state.share = course.share(state.step)
                if last or course.over(state.step):
                    with in_precision:
                        stats |= watch.look(method, state.step, state.seconds)
                        stats |= knn.look(method.encoder, state.seconds) if knn else {}
                progress.log(state.step, state.losses[: i + 1].cpu(), state.seconds, lr(optimizers), stats)
            if last:
                state.epoch_losses.append(mean(state.losses))
            if last or stopped or course.over(state.step):  # a clock may end within an epoch
                distributed.by_first(lambda: state.save(run))
                watch.stop(run)
            if stopped:
                where = f"step {state.step} of {course.steps(state.step):.0f}"
                raise Interrupted(int(stopped), f"stopped after {where}: --resume continues it")
    distributed.by_first(lambda: finish(run, recipe, data, state))


def batch_rows(step: int, images: int, batch_size: int, seed: int) -> Tensor:
    """The rows of a step's batch, int64 (B,): each epoch is a permutation, and its last, smaller batch is left out."""
    epoch, i = divmod(step, images // batch_size)
    return epoch_order(seed, epoch, images)[i * batch_size : (i + 1) * batch_size]


@functools.lru_cache(maxsize=2)  # an epoch's last batches are used while the next one's first are read
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the images in an epoch: int64 (N,), a permutation."""
    return torch.randperm(images, generator=generator("cpu", "order", seed, epoch))


def mean(losses: Tensor) -> float:
    """In float64, on the CPU: Apple's GPUs have none."""
    return losses.cpu().double().mean().item()


def lr(optimizers: list[torch.optim.Optimizer]) -> float:
    return optimizers[0].param_groups[0]["lr"]


def require_finite(losses: Tensor, first_step: int, run: Run) -> None:
    """Stop when one of these losses, of the steps from `first_step` on, is NaN or infinite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + int(bad[0])
        raise InputError(f"the loss of step {step} is {losses[bad[0]].item()}: likely {LIKELY}; {what_is_saved(run)}")


def require_finite_weights(method: torch.nn.Module, step: int, run: Run) -> None:
    """Stop when a weight or a statistic is NaN or infinite: a loss can be a number and its gradient not."""
    values = {name: value for name, value in method.state_dict().items() if value.is_floating_point()}
    sound = torch.stack([value.isfinite().all() for value in values.values()]).tolist()  # waits for the device once
    if not all(sound):
        name, why = list(values)[sound.index(False)], f"likely {LIKELY}; {what_is_saved(run)}"
        raise InputError(f"weights {name!r} hold NaN or infinite values after step {step}: {why}")


def what_is_saved(run: Run) -> str:
    where = f"the last good checkpoint is in {str(run.path)!r}"
    return where if checkpoints.kept(run) else "no epoch was finished"


def save_views(run: Run, recipe: Recipe, data: ImageSet, images: int = 10) -> None:
    """Write the first images, in the size of a view, beside views of them: uint8 (n, 1 + V, C, h, w)."""
    first = data.images[:images]
    stream = generator("cpu", "views", recipe.seed, "sample")
    views = [Views(recipe.augmentation)(first, stream) for _ in range(recipe.views)]
    originals = F.interpolate(
        normalise(first, recipe.augmentation), views[0].shape[2:], mode="bilinear", antialias=True
    )
    shown = denormalise(torch.stack([originals, *views], dim=1), recipe.augmentation)
    save_array(run.file(VIEWS), shown.numpy())


def finish(run: Run, recipe: Recipe, data: ImageSet, state: State) -> None:
    """Write what a trained run is known by."""
    weights = {name: value.cpu() for name, value in state.method.encoder.state_dict().items()}
    save_tensors(run.file(ENCODER), weights)
    part = state.step % len(state.losses)  # of an epoch that the clock cut short
    losses = state.epoch_losses + [mean(state.losses[:part])] * (part > 0)
    save_array(run.file(LOSS), np.array(losses, dtype=np.float64))
    images_seen = state.step * recipe.batch_size
    view = [view_size(side, recipe.augmentation) for side in data.images.shape[2:]]
    forwards = 1 if len(distributed.parts_of(recipe.batch_size, recipe.micro_batch)) == 1 else 2
    flops = training_flops(state.method, recipe.views, data.images.shape[1], view[0], view[1], forwards)
    run.update_scores(
        method=recipe.method,
        supervised=isinstance(state.method, SupervisedMethod),
        encoder=recipe.encoder,
        data=recipe.data,
        image_shape=list(data.images.shape[1:]),
        seed=recipe.seed,
        epochs=round(state.step / len(state.losses), 2) if part else state.step // len(state.losses),
        views_seen=images_seen * recipe.views,
        train_seconds=state.seconds,
        images_per_second=images_seen / state.seconds,
        **({"first_step_seconds": state.first_step} if state.first_step else {}),
        pflop=flops * images_seen * recipe.views / 1e15,
        loss=losses[-1],
        device=describe(state.device),
        processes=distributed.world(),
        precision=str(dtype_of(recipe.precision, state.device)).removeprefix("torch."),
        torch=torch.__version__,
    )
