"""Time several things in turn, A B C A B C ..., so that a machine whose speed drifts treats them alike; and spreads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial


def in_turn(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, by name; a first round is not counted."""
    return each_in_turn({name: partial(timed, thing) for name, thing in things.items()}, rounds)


def each_in_turn(things: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each call returns, seconds that it took itself, by name; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for counted in [False] + [True] * rounds:
        for name, thing in things.items():
            taken = thing()
            if counted:
                seconds[name].append(taken)
    return seconds


def timed(thing: Callable[[], object]) -> float:
    start = time.perf_counter()
    thing()
    return time.perf_counter() - start


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median over the rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, with one decimal; of a single value, that alone."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
