"""File locks between processes."""

from __future__ import annotations

import contextlib
import os

from filelock import BaseFileLock


def let_go(lock: BaseFileLock) -> None:
    """Release a lock and remove its file, the file first: filelock checks that the locked file still exists."""
    if lock.is_locked:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            os.unlink(lock.lock_file)
    lock.release()
