"""What the default run leaves out: parameters that are marked, and the line at its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sampling import some

HERE = Path(__file__)


def of_default(parameters: list[object]) -> list[object]:
    return [each for each in parameters if not (hasattr(each, "marks") and each.marks[0].name == "long")]


def test_some_are_short_and_the_rest_is_long_in_the_same_order():
    assert of_default(some("abc")) == ["a"] and of_default(some("abc", 2)) == ["a", "b"]
    marked = some({"x": 1, "y": 2, "z": 3}, ["z"])
    assert of_default(marked) == ["z"] and [each.values for each in marked[:2]] == [("x",), ("y",)]
    assert some([(1, 2), (3, 4)])[1].values == (3, 4)  # a case of two parameters
    for none in ([], ["d"]):
        with pytest.raises(AssertionError, match="must be there"):
            some("abc", none)


@pytest.mark.long
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_last_line_says_what_was_left_out(workers: str):
    words = ["-n", workers, "-p", "no:cacheprovider", str(HERE), "-k", "some"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "left out: 2 long (minutes): -m long", done.stdout
