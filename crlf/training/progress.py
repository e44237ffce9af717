"""The progress bar of a training run, and its log: one JSON object per logged step in log.jsonl."""

from __future__ import annotations

import json
import math
import sys
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from crlf.errors import InputError
from crlf.runs.files import finite, write_bytes
from crlf.runs.run import LOG, Run
from crlf.runtime import distributed
from crlf.text import duration, percent
from crlf.training.budget import ByClock, BySteps
from crlf.training.trackers import Write


class Progress:
    """The progress bar and the log of a run. Only a terminal shows the bar; each epoch also prints one line."""

    def __init__(self, run: Run, course: BySteps | ByClock, steps: int, batch_size: int, done: int, send: Write):
        self.run, self.course, self.steps, self.batch_size = run, course, steps, batch_size
        self.done = done  # steps
        self.send = send  # sends a row of the log to a tracker
        if distributed.rank() == 0:
            kept = [row for row in run.log() if row.get("step", 0) <= done]  # a resumed run repeats what came later
            write_bytes(run.file(LOG), "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.bar = tqdm(
            total=course.total * batch_size if isinstance(course, BySteps) else None,
            initial=done * batch_size,
            unit=" images",
            unit_scale=True,
            disable=True if distributed.rank() else None,  # None: unless stderr is a terminal
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left, {rate_fmt}{postfix}",  # whole at 60 columns
        )

    def log(self, step: int, losses: Tensor, seconds: float, lr: float, stats: dict[str, Any]) -> None:
        """Write a row of the log and update the bar, on the first process only.

        Args:
            step: number of steps done.
            losses: the losses of this epoch so far; those since the last call are at the end.
            seconds: training time so far.
            lr: the learning rate of the last step.
            stats: further values for the row; scalars may be tensors.

        Raises:
            InputError: log.jsonl cannot be written.
        """
        if distributed.rank() > 0:
            return
        new = losses[-max(1, step - self.done) :]
        self.done = step
        rate = step * self.batch_size / seconds
        row = {
            "step": step,
            "epoch": step / self.steps,
            "loss": new.double().mean().item(),
            "lr": lr,
            "seconds": round(seconds, 3),
            "images_per_second": round(rate, 1),
            **{name: value.item() if isinstance(value, Tensor) else value for name, value in stats.items()},
        }
        try:
            with self.run.file(LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(row)) + "\n")
        except OSError as error:
            raise InputError(f"{str(self.run.file(LOG))!r} cannot be written: {error.strerror}") from error
        self.send(row)
        left, total = self.course.left(step, seconds), self.course.steps(step) / self.steps
        clock = isinstance(self.course, ByClock) and not self.course.over(step)  # then the total is a guess
        epoch = f"epoch {-(-step // self.steps)}/{f'~{math.ceil(total)}' if clock else f'{total:.3g}'}"
        self.bar.total = round(total * self.steps * self.batch_size)
        self.bar.set_description_str(epoch, refresh=False)
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
        self.bar.update(step * self.batch_size - self.bar.n)
        if step % self.steps == 0:
            knn = f"kNN {percent(row['knn_accuracy'])}  " if "knn_accuracy" in row else ""
            rest = f"{duration(seconds)} in all" if self.course.over(step) else f"{duration(left)} left"
            line = f"{epoch}  loss {losses.double().mean().item():.4f}  {knn}{rate:,.0f} images/s  {rest}"
            tqdm.write(line, file=sys.stderr)  # at most 80 columns

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
