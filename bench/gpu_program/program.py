"""The parts one after another, within the time that there is; what they find is kept as it comes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu_program import tables

RESERVE = 2.0  # seconds at the end, for what is still to be written
GRACE = 5.0  # seconds by which a part may overrun its share before it is killed
LEAST = 4.0  # seconds with which a part is started
LOG_BYTES = 8_000_000  # of log.txt, whose end is kept
ERROR_LINES = 2  # of a part's log that stand in its result when it fails

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """Something to find out, and how long it may take."""

    name: str
    share: float | None
    """Seconds; None for all that is left."""
    work: Callable[[float, Emit], None]
    """Called in a process of its own with the seconds that it has, and with what to give each result to."""


class Results:
    """What was found so far: results.json, whole at any time, and tables.txt."""

    def __init__(self, out: Path, about: dict[str, Any]):
        self.out, self.started = out, time.monotonic()
        self.found: dict[str, Any] = {**about, "parts": {}, "rows": []}
        out.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.found["rows"].append({"part": part, "at": round(time.monotonic() - self.started, 2), **row})
        self.write()

    def end(self, part: str, state: str, seconds: float, error: str = "") -> None:
        """Note how a part ended: done, failed, killed or skipped."""
        self.found["parts"][part] = {
            "state": state,
            "seconds": round(seconds, 2),
            **({"error": error} if error else {}),
        }
        self.write()

    def write(self) -> None:
        """Both files, each replaced at once, so that a program that is killed leaves whole ones."""
        self.found["seconds"] = round(time.monotonic() - self.started, 2)
        replace(self.out / "results.json", json.dumps(self.found, indent=1, default=float))
        replace(self.out / "tables.txt", tables.text(self.found))


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def run(
    out: Path, seconds: float, parts: Sequence[Part], about: dict[str, Any], modules: Sequence[str] = ()
) -> Results:
    """Run the parts in order; return within `seconds`.

    Args:
        about: what stands at the head of the results.
        modules: imported once, by the process that all parts are forked from. It never touches the GPU.
    """
    results = Results(out, about)
    deadline = results.started + seconds - RESERVE
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    for part in parts:
        left = deadline - time.monotonic()
        if left < LEAST:
            results.end(part.name, "skipped", 0.0, f"{max(0.0, left):.0f} s were left")
            continue
        run_part(context, part, results, min(left, part.share or left), deadline)
    results.write()
    return results


def run_part(context: Any, part: Part, results: Results, seconds: float, deadline: float) -> None:
    """Run one part in a process group of its own, and kill what is left of it when its time is over."""
    start = time.monotonic()
    log = results.out / "log.txt"
    log.touch()
    begin = log.stat().st_size
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(part.work, seconds, sender, log))
    child.start()
    try:
        with killing(child):
            sender.close()  # the child's is then the only one, and its end is seen
            in_time = receive(receiver, part.name, results, min(start + seconds + GRACE, deadline))
            if in_time:
                child.join(GRACE)
    finally:
        receiver.close()
    took = time.monotonic() - start
    state = "done" if child.exitcode == 0 and in_time else "failed" if in_time else "killed"
    error = "" if state == "done" else last_words(log, begin) or f"exit code {child.exitcode}"
    results.end(part.name, state, took, error if state != "killed" else f"not done after {took:.0f} s; {error}")
    trim(log)


def in_child(work: Callable[[float, Emit], None], seconds: float, sender: Connection, log: Path) -> None:
    """A part's process. What it prints goes to the log; it leads a group of its own, all of which can be killed."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        work(seconds, sender.send)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once: a thread that hangs would hold up an orderly end
    finally:
        sender.close()


def receive(receiver: Connection, part: str, results: Results, until: float) -> bool:
    """Keep the results of a part until it closes its end; whether it did in time."""
    while (left := until - time.monotonic()) > 0:
        if receiver.poll(left):
            try:
                results.add(part, receiver.recv())
            except (EOFError, OSError):
                return True
    return False


@contextlib.contextmanager
def killing(child: BaseProcess) -> Any:
    """At the end of the block, however it comes, the process and all that it started are gone."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for kill in (os.killpg, os.kill):  # the group is not there yet when the child has just begun
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child.pid or 0, signal.SIGKILL)
        child.join()


def last_words(log: Path, begin: int) -> str:
    """The last lines that a part wrote to the log, which say why it failed."""
    lines = [line.strip() for line in log.read_bytes()[begin:][-20_000:].decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-ERROR_LINES:])[-600:]


def trim(path: Path) -> None:
    """Keep the end of a log that has grown too long."""
    if path.stat().st_size > LOG_BYTES:
        path.write_bytes(path.read_bytes()[-LOG_BYTES // 2 :])
