"""Locks of files that two processes would write at once."""

from __future__ import annotations

import contextlib
import os

from filelock import BaseFileLock


def let_go(lock: BaseFileLock) -> None:
    """Release a lock and take its file away, the file first: filelock looks whether what it locked is still there."""
    if lock.is_locked:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            os.unlink(lock.lock_file)
    lock.release()
