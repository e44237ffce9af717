"""What a run says while it trains: a bar on the terminal, and one JSON object a logged step in log.jsonl."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from crlf.errors import InputError
from crlf.runs.files import finite, write_bytes
from crlf.runs.run import LOG, Run
from crlf.runtime import distributed
from crlf.text import percent
from crlf.training.budget import ByClock, BySteps
from crlf.training.trackers import Write


class Progress:
    """The bar and the log of a run. On a terminal the bar moves; elsewhere each epoch leaves one line."""

    def __init__(self, run: Run, course: BySteps | ByClock, steps: int, batch_size: int, done: int, send: Write):
        self.run, self.course, self.steps, self.batch_size = run, course, steps, batch_size
        self.done = done  # steps
        self.send = send  # a row of the log, to a tracker
        if distributed.rank() == 0:
            kept = [row for row in run.log() if row.get("step", 0) <= done]  # a resumed run goes on from its checkpoint
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
        """Say how far the run is; of several processes the first one does.

        Args:
            step: steps done.
            losses: those of this epoch so far; the new ones are its end.
            seconds: of training so far.
            stats: what else the row shall hold; scalars may be tensors.
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
        epoch = f"epoch {-(-step // self.steps)}/{total:.3g}"
        self.bar.total = round(total * self.steps * self.batch_size)
        self.bar.set_description_str(epoch, refresh=False)
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
        self.bar.update(step * self.batch_size - self.bar.n)
        if step % self.steps == 0:
            knn = f"kNN {percent(row['knn_accuracy'])}  " if "knn_accuracy" in row else ""
            line = (
                f"{epoch}  loss {losses.double().mean().item():.4f}  {knn}"
                f"{rate:,.0f} images/s  {tqdm.format_interval(seconds)} passed  {tqdm.format_interval(left)} left"
            )
            tqdm.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
