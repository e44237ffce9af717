"""The progress of a run, measured in steps or by the clock. The learning rate depends on this progress alone."""

from __future__ import annotations

import time
from collections import deque

from crlf.recipe import Recipe
from crlf.runtime import distributed

LOG_EVERY = 20  # steps, at least
LOG_LINES = 500  # at most, in a long run, besides one per epoch: each one waits for the device
LOOK_EVERY = 1.0  # seconds between two readings of the clock
WINDOW = 8  # readings over which the pace is averaged


class BySteps:
    """A run of a known number of steps."""

    def __init__(self, total: int):
        self.total = total
        self.every = max(LOG_EVERY, total // LOG_LINES)

    def over(self, step: int) -> bool:
        return step >= self.total

    def steps(self, step: int) -> float:
        """The number of steps of the whole run."""
        return self.total

    def share(self, step: float) -> float:
        """The share of the run that is done after `step` steps, in 0..1."""
        return step / self.total

    def due(self, step: int) -> bool:
        """Whether to read the losses after `step` steps, which waits for the device."""
        return step % self.every == 0

    def look(self, step: int, seconds: float) -> None:
        """Take in how many seconds the steps so far took."""

    def left(self, step: int, seconds: float) -> float:
        """Seconds to the end."""
        return seconds / step * (self.total - step)


class ByClock:
    """A run of a known number of seconds, with as many steps as fit.

    Between two readings of the clock, each step advances the run by the same share. A reading sets this share so that
    the remaining steps, at the recent pace, end at 1. A machine that slows down therefore takes fewer steps, and the
    learning rate still falls to its final value.

    Args:
        budget: seconds of training.
        step, share: the progress of a resumed run.
        seconds: how much of the budget a resumed run has used.
    """

    def __init__(self, budget: float, step: int = 0, share: float = 0.0, seconds: float = 0.0):
        self.budget = budget
        self.start = step
        self.step, self.done = step, share  # at the last reading
        self.stride = 0.0  # share of the run in a step; none in the first, which measures the speed
        self.looks = deque([(step, seconds)], maxlen=WINDOW)
        self.next_look = 0.0
        self.ended = share >= 1 or (step > 0 and seconds >= budget)

    def over(self, step: int) -> bool:
        return self.ended

    def steps(self, step: int) -> float:
        return step if self.ended or not self.stride else step + (1 - self.share(step)) / self.stride

    def share(self, step: float) -> float:
        return min(1.0, self.done + self.stride * (step - self.step))

    def due(self, step: int) -> bool:
        return step == self.step + 1 if self.stride == 0 else time.perf_counter() >= self.next_look

    def look(self, step: int, seconds: float) -> None:
        self.done, self.step = self.share(step), step
        first_look = len(self.looks) == 1
        if len(self.looks) == 2 and self.looks[0][0] == self.start:
            self.looks.popleft()  # the pace leaves out the first step, which warms up or compiles
        self.looks.append((step, seconds))
        (first, start), (last, end) = self.looks[0], self.looks[-1]
        pace = max(end - start, 1e-9) / (last - first)
        steps = (self.budget - seconds) / pace  # that are left
        self.ended = steps < 0.5
        self.done = 1.0 if self.ended else self.done
        self.stride = (1 - self.done) / max(1.0, steps)
        self.next_look = time.perf_counter() + min(LOOK_EVERY, pace * steps / 4)
        if first_look:  # one step is a poor estimate: read the clock again after the next step, with a small stride
            self.stride, self.next_look = min(self.stride, 0.01), 0.0

    def left(self, step: int, seconds: float) -> float:
        return max(0.0, self.budget - seconds)


Course = BySteps | ByClock


def course_of(recipe: Recipe, steps: int, step: int, share: float, seconds: float, started: float | None) -> Course:
    """The course of a run: by the clock if its recipe sets a time budget, else by its epochs.

    Args:
        steps: number of steps in an epoch.
        step, share, seconds: the progress of a resumed run.
        started: the start of the run on the clock of `time.perf_counter`, from which a time budget counts.
    """
    if not recipe.budget:
        return BySteps(recipe.epochs * steps)
    startup = 0.0 if started is None else time.perf_counter() - started
    [startup] = distributed.highest(startup)
    return ByClock(60 * recipe.budget - startup, step, share, seconds)
