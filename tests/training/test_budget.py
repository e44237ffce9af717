"""The share of a run that is done, by steps and by a clock whose speed changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from crlf.recipe import Recipe
from crlf.training import budget
from crlf.training.budget import ByClock, BySteps


def ride(monkeypatch: pytest.MonkeyPatch, seconds: float, pace: Callable[[float], float]) -> tuple[list[float], float]:
    """The shares at the middle of the steps of a run whose steps take `pace(seconds)`, and the seconds it took."""
    now = [0.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    by_clock, step, shares = ByClock(seconds), 0, []
    while not by_clock.over(step):
        shares.append(by_clock.share(step + 0.5))
        now[0] += pace(now[0])
        step += 1
        if by_clock.due(step):
            by_clock.look(step, now[0])
        assert step < 100_000
    assert by_clock.share(step) == 1
    return shares, now[0]


PACES = {
    "even": lambda now: 0.1,
    "slow at first": lambda now: 2.0 if now == 0 else 0.1,
    "half of the budget in the first step": lambda now: 30.0 if now == 0 else 0.1,
    "three times slower from the middle": lambda now: 0.1 if now < 30 else 0.3,
    "three times faster from the middle": lambda now: 0.3 if now < 30 else 0.1,
    "a pause of five seconds": lambda now: 5.0 if 40 < now < 41 else 0.1,
    "unsteady": lambda now: 0.05 + 0.1 * (int(10 * now) % 3),
    "long steps": lambda now: 1.9,
    "very short steps": lambda now: 0.002,
}


@pytest.mark.parametrize("name", PACES)
def test_a_budget_ends_on_time_and_its_share_rises_to_one(monkeypatch: pytest.MonkeyPatch, name: str):
    shares, seconds = ride(monkeypatch, 60, PACES[name])
    assert seconds == pytest.approx(60, rel=0.05)
    assert shares == sorted(shares)
    assert shares[-1] > 0.95  # the learning rate has come down
    assert max(b - a for a, b in pairwise(shares)) < 0.2


def test_a_slower_half_gets_fewer_steps_and_the_whole_rest_of_the_schedule(monkeypatch: pytest.MonkeyPatch):
    shares, _ = ride(monkeypatch, 60, PACES["three times slower from the middle"])
    assert shares[299] == pytest.approx(0.5, abs=0.02)  # the middle of the budget is the middle of the schedule
    assert 395 <= len(shares) <= 405


def test_a_budget_below_one_step_still_takes_one(monkeypatch: pytest.MonkeyPatch):
    assert len(ride(monkeypatch, 0.01, lambda now: 1.0)[0]) == 1


def test_a_resumed_budget_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget.time, "perf_counter", lambda: 0.0)
    resumed = ByClock(60, step=300, share=0.5, seconds=30)
    assert not resumed.over(300) and resumed.share(300.5) == 0.5
    resumed.look(301, 30.1)
    assert resumed.share(302) == pytest.approx(0.5 + 0.5 / 299, rel=1e-3)
    assert resumed.steps(301) == pytest.approx(600, abs=1)
    assert resumed.left(301, 30.1) == pytest.approx(29.9)
    assert ByClock(60, step=600, share=1.0, seconds=60).over(600)
    assert ByClock(60, step=3, share=0.1, seconds=70).over(3)


def test_steps_are_exact():
    by_steps = BySteps(50)
    assert [by_steps.share(s) for s in (0, 12.5, 50)] == [0, 0.25, 1]
    assert not by_steps.over(49) and by_steps.over(50)
    assert [step for step in range(1, 51) if by_steps.due(step)] == [20, 40]
    assert by_steps.left(10, 5.0) == 20 and by_steps.steps(10) == 50


def test_minutes_count_from_the_start_of_the_run(monkeypatch: pytest.MonkeyPatch):
    """Ten seconds went by before training began: they are spent."""
    monkeypatch.setattr(budget.time, "perf_counter", lambda: 110.0)
    course = budget.course_of(Recipe(data="shapes", minutes=2), 10, 0, 0.0, 0.0, started=100.0)
    assert isinstance(course, ByClock) and course.budget == 110 and course.left(1, 30.0) == 80
    resumed = budget.course_of(Recipe(data="shapes", minutes=2), 10, 4, 0.3, 40.0, started=None)
    assert isinstance(resumed, ByClock) and (resumed.budget, resumed.share(4)) == (120, 0.3)
    by_epochs = budget.course_of(Recipe(data="shapes", epochs=7), 10, 0, 0.0, 0.0, started=100.0)
    assert isinstance(by_epochs, BySteps) and by_epochs.total == 70
