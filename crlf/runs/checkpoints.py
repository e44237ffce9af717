"""What a run needs to go on. It keeps the last checkpoint and the one before it, and notices when one is damaged.

A checkpoint is written to a temporary name, synced, and renamed; it is checked when it is read (crlf.runs.files).
"""

from __future__ import annotations

import sys
from typing import Any

from crlf.errors import InputError
from crlf.runs.files import save_tensors
from crlf.runs.run import CHECKPOINT, CHECKPOINT_BEFORE, Run


def save(run: Run, values: dict[str, Any]) -> None:
    """Write a checkpoint; the last one becomes the one before it."""
    save_tensors(run.file(CHECKPOINT), values, before=run.file(CHECKPOINT_BEFORE))


def kept(run: Run) -> bool:
    """Whether there is one."""
    return run.file(CHECKPOINT).exists() or run.file(CHECKPOINT_BEFORE).exists()


def load(run: Run) -> dict[str, Any]:
    """The last checkpoint; when it is damaged or missing, the one before it, with a warning on stderr.

    Raises:
        InputError: neither can be read; the error is the last one's.
    """
    try:
        return run.tensors(CHECKPOINT)
    except InputError as error:
        try:
            values = run.tensors(CHECKPOINT_BEFORE)
        except InputError:
            raise error from None
        print(f"warning: {error}; the one before it is used", file=sys.stderr)
        return values
