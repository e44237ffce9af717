"""How far a run is: by its steps, or by the clock. The learning rate follows from that alone."""

from __future__ import annotations

import time
from collections import deque

from crlf.recipe import Recipe
from crlf.runtime import distributed

LOG_EVERY = 20  # steps, at least
LOG_LINES = 500  # of a run that is known to be long, beside those of its epochs: each waits for the device
LOOK_EVERY = 1.0  # seconds between two looks at the clock
WINDOW = 8  # looks whose mean is the pace


class BySteps:
    """A run of a known number of steps."""

    def __init__(self, total: int):
        self.total = total
        self.every = max(LOG_EVERY, total // LOG_LINES)

    def over(self, step: int) -> bool:
        return step >= self.total

    def steps(self, step: int) -> float:
        """Steps of the whole run."""
        return self.total

    def share(self, step: float) -> float:
        """The share of the run that is done after so many steps, 0..1."""
        return step / self.total

    def due(self, step: int) -> bool:
        """Whether to read the losses, and so to wait for the device, after so many steps."""
        return step % self.every == 0

    def look(self, step: int, seconds: float) -> None:
        """Learn how many seconds of training the steps so far took."""

    def left(self, step: int, seconds: float) -> float:
        """Seconds to the end."""
        return seconds / step * (self.total - step)


class ByClock:
    """A run of a known number of seconds. Its steps are as many as fit, and are counted anew as the speed changes.

    Between two looks at the clock each step advances the share that is done by the same amount; a look sets that amount
    so that the rest of the steps, at the pace of the last seconds, ends at 1. Then a machine that slows down gets fewer
    steps, and a learning rate that still falls to its end.

    Args:
        budget: seconds of training.
        step, share: what a resumed run has done.
        seconds: of the budget that it used.
    """

    def __init__(self, budget: float, step: int = 0, share: float = 0.0, seconds: float = 0.0):
        self.budget = budget
        self.start = step
        self.step, self.done = step, share  # at the last look
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
        if first_look:  # one step says little: the next one is looked at too, and until then little is counted as done
            self.stride, self.next_look = min(self.stride, 0.01), 0.0

    def left(self, step: int, seconds: float) -> float:
        return max(0.0, self.budget - seconds)


Course = BySteps | ByClock


def course_of(recipe: Recipe, steps: int, step: int, share: float, seconds: float, started: float | None) -> Course:
    """How far a run is to go: as many minutes as its recipe says, or as many epochs of so many steps.

    Args:
        step, share, seconds: what a resumed run has done.
        started: when the run did, on the clock of `time.perf_counter`; a time budget counts from then.
    """
    if not recipe.budget:
        return BySteps(recipe.epochs * steps)
    startup = 0.0 if started is None else time.perf_counter() - started
    [startup] = distributed.highest(startup)
    return ByClock(60 * recipe.budget - startup, step, share, seconds)
