"""The loop: batch, views, learning rate, loss, backward, step, log, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crlf.augmentation import Views
from crlf.data import ImageSet
from crlf.data.loader import batch_rows, batches
from crlf.errors import InputError
from crlf.methods.base import IndexedMethod, Method, SupervisedMethod
from crlf.optim import rates, set_rates
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.run import Run
from crlf.runtime import distributed
from crlf.runtime.devices import autocast, wait_for
from crlf.runtime.interrupts import Interrupted, stop_requests
from crlf.runtime.seeding import generator
from crlf.training.budget import Course, course_of
from crlf.training.compile import compiled
from crlf.training.gradients import Loss, gradients
from crlf.training.graphs import replayed
from crlf.training.knn_curve import KnnCurve
from crlf.training.monitor import Points, Watch, gradient_norm
from crlf.training.parallel import engine_of
from crlf.training.progress import Progress
from crlf.training.results import finish, mean
from crlf.training.state import State
from crlf.training.trackers import tracked

LIKELY = "the learning rate is too high, the temperature is too low, or the images are not finite"


class Step:
    """A training step: views, loss, backward pass and update of the weights."""

    warm = 1  # number of first steps that are slow if compiled

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        optimizers: Sequence[torch.optim.Optimizer],
        make_view: Views,
        device: torch.device,
    ):
        self.recipe, self.method, self.optimizers, self.make_view = recipe, method, optimizers, make_view
        self.precision = autocast(recipe.precision, device)
        self.parts = distributed.parts_of(recipe.batch_size, recipe.micro_batch)  # usually one, the whole batch
        shard = recipe.shard if recipe.compile == "none" else "none"
        self.engine = engine_of(method, recipe.batch_size, len(self.parts), shard, optimizers)

    def __call__(self, images: Tensor, numbers: Tensor, told: Tensor | None, measured: bool = False) -> Loss:
        """Take a step.

        Args:
            images: uint8 (B, C, H, W), the images of this process.
            numbers: float (n, B V), the random numbers of the batch of all processes, see `Views.numbers`.
            told: int64 (B,), the indices or labels of the batch, see `crlf.methods.base.compare`.
            measured: whether to measure the norm of the gradient for the log.

        Returns:
            The loss, a scalar, and the method's other statistics, detached.
        """

        def views_of(part: range) -> Sequence[Tensor]:
            """The views of some of the images, each float (b, C, h, w)."""
            first = self.parts[0].start
            own = images[part.start - first : part.stop - first]
            return self.make_view.of_part(own, self.recipe.views, numbers, self.recipe.batch_size, part)

        frozen = self.recipe.frozen_norm
        loss, stats = gradients(self.method, views_of, self.parts, told, self.precision, frozen, self.engine)
        if measured:
            stats["gradient_norm"] = gradient_norm(self.method.parameters())
        if self.recipe.optim.loss_scale != 1:
            scale = self.recipe.optim.loss_scale
            torch._foreach_mul_([p.grad for p in self.method.parameters() if p.grad is not None], scale)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss, stats


def train(
    run: Run,
    recipe: Recipe,
    data: ImageSet,
    state: State,
    started: float | None = None,
    track: str = "none",
    knn: KnnCurve | None = None,
) -> None:
    """The loop: batch, views, learning rate, loss, backward, step, after_step, log, save.

    Args:
        started: the start of the run on the clock of `time.perf_counter`, from which a time budget counts.
        track: one of crlf.training.trackers.TRACKERS.
        knn: evaluates the encoder from time to time; nothing else here sees the labels.
    """
    steps = len(state.losses)  # in an epoch
    course = course_of(recipe, steps, state.step, state.share, state.seconds, started)
    method, device = state.method.train(), state.device
    make_view, watch = Views(recipe.augmentation, recipe.normalisation), Watch(recipe, data.images, device)
    if recipe.start.init and not state.step and distributed.rank() == 0:
        watch.start(method)
    step = Step(recipe, method, state.optimizers, make_view, device)

    def rows_of(step_number: int) -> Tensor:
        data.require_unchanged()
        rows = batch_rows(step_number, data.images, recipe.batch_size, recipe.seed)
        return rows[step.parts[0].start : step.parts[-1].stop]  # this process's

    def told(step_number: int) -> Tensor | None:
        """The indices of the batch, or its labels; only supervised methods get labels."""
        if isinstance(method, IndexedMethod):
            return rows_of(step_number).to(device, non_blocking=True)
        if data.labels is None or not isinstance(method, SupervisedMethod):
            return None
        return data.labels[rows_of(step_number)].to(device, non_blocking=True)

    with (
        stop_requests() as stop,
        tracked(track, run, state.step) as send,
        batches(data.images, rows_of, device) as pixels,
        compiled(method, make_view, recipe.compile),
        Progress(run, course, steps, recipe.batch_size, state.step, send) as progress,
    ):
        take, begun = replayed(step, recipe.compile, device), state.step
        points = Points(state.step, state.share)
        clock = time.perf_counter() - state.seconds
        while not course.over(state.step):
            i = state.step % steps
            last = i == steps - 1  # of the epoch
            images = pixels[state.step]  # uint8 (B, C, H, W)
            numbers = make_view.numbers(recipe.batch_size, recipe.views, stream_of(recipe, state))
            set_rates(state.optimizers, **rates(recipe.optim, course.share(state.step + 0.5), recipe.start.head_first))
            loss, stats = take(images, numbers, told(state.step), measured=last)  # views, loss, backward, step
            state.step += 1
            method.after_step(course.share(state.step))
            state.losses[i] = loss
            if recipe.compile != "none" and state.step - begun == take.warm:
                wait_for(device)
                state.first_step = time.perf_counter() - clock - state.seconds
            point = points.passed(state.step, course.share(state.step), last)
            stopped, due = distributed.highest(stop[0] if stop else 0, course.due(state.step) or point)
            if last or stopped or due:
                require_finite(state.losses[: i + 1], state.step - i, run)  # waits for the device
                [state.seconds] = distributed.highest(time.perf_counter() - clock)
                course.look(state.step, state.seconds)
                state.share = course.share(state.step)
                point = point or course.over(state.step)
                if last or point:
                    stats |= looks(watch, knn, step, state, point)
                progress.log(state.step, state.losses[: i + 1].cpu(), state.seconds, lr(state.optimizers), stats)
            if last:
                state.epoch_losses.append(mean(state.losses))
            if last or stopped or course.over(state.step):  # a clock may end within an epoch
                kept = step.engine.whole(state.optimizers)
                require_finite_weights(kept.method, state.step, run)
                at_once = bool(stopped) or course.over(state.step)
                distributed.by_first(lambda kept=kept, at_once=at_once: state.save(run, at_once, kept))  # type: ignore[misc]
                watch.stop(run)
            if stopped:
                raise Interrupted(int(stopped), f"stopped after {progress_of(course, state)}: --resume continues it")
    state.method = step.engine.plain()
    distributed.by_first(lambda: finish(run, recipe, data, state))


def stream_of(recipe: Recipe, state: State) -> torch.Generator:
    """The generator of the next step's views, a function of the seed and the step."""
    return generator(state.device, "views", recipe.seed, state.step)


def looks(watch: Watch, knn: KnnCurve | None, step: Step, state: State, point: bool) -> dict[str, Any]:
    """Measures of the features for a row of the log, at one of the `POINTS` of a run or at the end of an epoch."""
    progress, method = state.share if point else None, step.engine.plain()
    with step.precision:
        found = watch.look(method, state.step, state.seconds, progress)
        return found | (knn.look(method.encoder, state.seconds, state.step, progress) if knn else {})


def progress_of(course: Course, state: State) -> str:
    return f"step {state.step} of {course.steps(state.step):.0f}"


def lr(optimizers: list[torch.optim.Optimizer]) -> float:
    return float(optimizers[0].param_groups[0]["lr"])


def require_finite(losses: Tensor, first_step: int, run: Run) -> None:
    """Raise InputError if a loss is NaN or infinite; `losses` are those of the steps from `first_step` on."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + int(bad[0])
        raise InputError(f"the loss of step {step} is {losses[bad[0]].item()}: likely {LIKELY}; {what_is_saved(run)}")


def require_finite_weights(weights: dict[str, Tensor], step: int, run: Run) -> None:
    """Raise InputError if a weight or a running statistic is NaN or infinite, which a finite loss does not rule out."""
    values = {name: value for name, value in weights.items() if value.is_floating_point()}
    sound = torch.stack([value.isfinite().all() for value in values.values()]).tolist()  # waits for the device once
    if not all(sound):
        name, why = list(values)[sound.index(False)], f"likely {LIKELY}; {what_is_saved(run)}"
        raise InputError(f"weights {name!r} hold NaN or infinite values after step {step}: {why}")


def what_is_saved(run: Run) -> str:
    where = f"the last good checkpoint is in {str(run.path)!r}"
    return where if checkpoints.kept(run) else "there is no checkpoint, since no epoch was finished"
