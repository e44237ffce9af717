"""Numbers and durations as text, and messages on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from tqdm import tqdm

SAID: ContextVar[set[str] | None] = ContextVar("SAID", default=None)  # the lines printed within `each_once`
PYTHON_ONLY = "not on the command line"  # marks a parameter that crlf.cli.flags leaves out


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A duration such as 3 h 20 min, 2 min 5 s or 0.4 s."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """A number of bytes, such as 1.25 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def say(line: str) -> None:
    """Print a line on stderr, above any progress bar."""
    said = SAID.get()
    if said is None or line not in said:
        tqdm.write(line, file=sys.stderr)
    if said is not None:
        said.add(line)


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """Let `say` print each line once within this block or function, since several stages may read the same images."""
    before = SAID.set(set())
    try:
        yield
    finally:
        SAID.reset(before)
