"""The loop: batch, views, learning rate, loss, backward, step, log, save."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from crlf.augmentation import Views
from crlf.data import ImageSet
from crlf.data.loader import batch_rows, batches
from crlf.errors import InputError
from crlf.methods.base import SupervisedMethod
from crlf.optim import schedule, set_rates
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.run import Run
from crlf.runtime import distributed
from crlf.runtime.devices import autocast, wait_for
from crlf.runtime.interrupts import Interrupted, stop_requests
from crlf.runtime.seeding import generator
from crlf.training.budget import ByClock, BySteps
from crlf.training.compile import compiled, new_step
from crlf.training.gradients import gradients
from crlf.training.monitor import KnnCurve, Watch, gradient_norm
from crlf.training.progress import Progress
from crlf.training.results import finish, mean
from crlf.training.state import State
from crlf.training.trackers import tracked

LIKELY = "a learning rate that is too high, a temperature that is too low, or images that are not finite"


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
