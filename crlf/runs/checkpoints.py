"""Checkpoints, from which a run resumes. The last two are kept, and damaged ones are detected.

A checkpoint is written to a temporary file, synced and renamed, and it is checked when it is read (crlf.runs.files).
"""

from __future__ import annotations

import sys
from typing import Any

from crlf.errors import InputError
from crlf.runs.files import save_tensors
from crlf.runs.run import CHECKPOINT, CHECKPOINT_BEFORE, Run


def save(run: Run, values: dict[str, Any]) -> None:
    """Write a checkpoint, and keep the previous one."""
    save_tensors(run.file(CHECKPOINT), values, before=run.file(CHECKPOINT_BEFORE))


def kept(run: Run) -> bool:
    """Whether the run has a checkpoint."""
    return run.file(CHECKPOINT).exists() or run.file(CHECKPOINT_BEFORE).exists()


def load(run: Run) -> dict[str, Any]:
    """Load the last checkpoint, or if it is damaged or missing the previous one, with a warning on stderr.

    Raises:
        InputError: neither can be read; the message is about the last one.
    """
    try:
        return run.tensors(CHECKPOINT)
    except InputError as error:
        try:
            values = run.tensors(CHECKPOINT_BEFORE)
        except InputError:
            raise error from None
        print(f"warning: {error}; using the previous one", file=sys.stderr)
        return values
