"""Notices a host that disappears without closing its connections, for example after a loss of power or network.

gloo would wait for such a host forever. So each process increments a counter in the store, rank 0 watches all counters,
and the others watch the counter of rank 0. A process whose counter stands still for `SILENT` beats is gone; a shorter
interruption of the network only slows the run down. Beats are counted, not seconds, so a machine that was suspended
with all its processes finds nobody missing.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from crlf.runtime import meeting

BEAT = 5.0  # seconds between two beats
SILENT = 12  # beats: one minute
PATIENCE = datetime.timedelta(minutes=10)  # time-out of the connection to the store
LEFT = -1  # the last count of a process that ended normally


class Pulse:
    """The counter of this process and those that it watches."""

    def __init__(self, rank: int, world: int, name: str):
        self.rank, self.world, self.name = rank, world, name
        self.store = meeting.client(meeting.place_of_store(), PATIENCE)
        self.watched = range(1, world) if rank == 0 else [0]
        self.counts: dict[int, int] = {}
        self.missed = dict.fromkeys(self.watched, 0)
        self.beats = 0

    def beat(self) -> list[int]:
        """Increment the counter, and return the ranks that are gone."""
        self.beats += 1
        self.say(self.beats)
        if self.rank and self.store.check([self.key("gone")]):
            return json.loads(self.store.get(self.key("gone")))
        lost = [other for other in self.watched if self.silent(other) >= SILENT]
        if lost and self.rank == 0:
            self.store.set(self.key("gone"), json.dumps(lost))
        return lost

    def say(self, count: int) -> None:
        self.store.set(self.key(self.rank), str(count))

    def silent(self, other: int) -> int:
        """The number of beats for which the counter of another process has not changed."""
        before = self.counts.get(other, 0)
        key = self.key(other)
        self.counts[other] = before if before == LEFT or not self.store.check([key]) else int(self.store.get(key))
        still = self.counts[other] == before != LEFT
        self.missed[other] = self.missed[other] + 1 if still else 0
        return self.missed[other]

    def key(self, what: int | str) -> str:
        return f"crlf/beat/{self.name}/{what}"


@contextlib.contextmanager
def watched(rank: int, world: int, name: str, lose: Callable[[Sequence[int]], int]) -> Iterator[None]:
    """End this process if another one is gone while the block runs.

    Args:
        rank, world: the number of this process, and the number of processes.
        name: the name of the group, see `meeting.meet`.
        lose: prints the reason, given the ranks that are gone, and returns the exit code.
    """
    pulse, over = Pulse(rank, world, name), threading.Event()

    def end(lost: Sequence[int]) -> NoReturn:
        code = lose(lost)
        if rank == 0:
            over.wait(2 * BEAT)  # for the others to read it, if the store ends with this process
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)  # the main thread waits in gloo, and no exception reaches it

    def count() -> None:
        with contextlib.suppress(RuntimeError):  # the store was closed: then gloo notices who ended
            while not over.wait(BEAT) and pulse.counts.get(0) != LEFT:
                if (lost := pulse.beat()) and not over.is_set():
                    end(lost)
            pulse.say(LEFT)
        over.set()

    def guard() -> None:
        """Notice that the counting thread is stuck because the store does not respond."""
        before, missed = 0, 0
        while not over.wait(BEAT):
            missed = missed + 1 if pulse.beats == before else 0
            before = pulse.beats
            if missed >= SILENT:
                end([0])

    threads = [threading.Thread(target=work, daemon=True) for work in (count, guard)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        threads[0].join(BEAT)
