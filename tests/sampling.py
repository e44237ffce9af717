"""Of many parameters, the few that the default run takes; all of them run with the long tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], quick: int | Collection[Any] = 1) -> list[Any]:
    """Parameters, all `long` but the first so many, or those that are named: for `pytest.mark.parametrize`."""
    every = list(values)
    taken = every[:quick] if isinstance(quick, int) else list(quick)
    assert taken and all(value in every for value in taken), "what is left in the default run must be there"
    return [value if value in taken else marked(value) for value in every]


def marked(value: Any) -> Any:
    """A parameter, or several of one case, as a long one."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
