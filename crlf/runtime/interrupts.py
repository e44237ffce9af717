"""Handles Ctrl-C, SIGTERM and SIGUSR1 between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""The signals after which a run saves and ends. Slurm sends SIGUSR1 before a time limit; Windows has no SIGUSR1."""


class Interrupted(KeyboardInterrupt):
    """The user or the system stopped the run, and its progress is saved."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives the number of one of `STOPS` when it arrives.

    A second Ctrl-C interrupts at once. Outside the main thread Python allows no handlers, and the list stays empty.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by a C library
