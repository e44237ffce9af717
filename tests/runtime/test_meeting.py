"""Processes that do not come, differ, or are gone without a word: one line each, in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
VANISH = """
distributed.gather(0)  # all are connected
if distributed.rank() == {rank}: os.kill(os.getpid(), signal.SIGSTOP)
distributed.gather(1)
"""
PROGRAM = """
import datetime, os, signal, sys
import torch
import crlf
from crlf.errors import InputError
from crlf.runtime import distributed, heartbeat, meeting
meeting.ARRIVAL = datetime.timedelta(seconds=20)
heartbeat.BEAT, heartbeat.SILENT = 0.2, 10
exec(sys.argv[1])
try:
    with distributed.together():
        exec(sys.argv[2])
except InputError as error:
    raise SystemExit(print(f"error: {error}", file=sys.stderr) or 2)
"""


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def started(ranks: dict[int, tuple[str, str]], world: int) -> dict[int, subprocess.Popen]:
    """A process for each rank, which runs one line before the meeting and one after it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return {
        rank: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *lines], env=environment | place | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, lines in ranks.items()
    }  # fmt: skip


def ends(processes: dict[int, subprocess.Popen]) -> dict[int, tuple[int, str]]:
    """The exit code and stderr of each."""
    try:
        said = {rank: process.communicate(timeout=100)[1] for rank, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    return {rank: (process.returncode, said[rank].strip()) for rank, process in processes.items()}


def test_a_process_that_never_comes_is_named():
    found = ends(started({rank: ("", "") for rank in (0, 2)}, 3))
    host = socket.gethostname()
    assert found[0] == (2, f"error: rank 1 of 3 did not come within 20.0 s; those who came are on {host}")
    assert found[2] == (2, "")


def test_rank_0_that_never_comes_is_named():
    code, said = ends(started({1: ("", "")}, 2))[1]
    assert code == 2
    assert "error: rank 0 of 2 did not come within 20.0 s: nothing responds at 127.0.0.1:" in said


@pytest.mark.parametrize("library", ["torch", "crlf"])
def test_versions_that_differ(library: str):
    found = ends(started({0: ("", ""), 1: (f"{library}.__version__ = '0.0'", "")}, 2))
    assert found[0][0] == 2 and found[1] == (2, "")
    host = socket.gethostname()
    said = found[0][1]
    assert said.startswith(f"error: all processes need the same {library}, not ") and said.count("\n") == 0
    assert f"on {host} (rank 0) and 0.0 on {host} (rank 1)" in said


def test_what_only_another_rank_finds_is_said_by_rank_0():
    """Such as a folder that is missing on one host."""
    wrong = """
with distributed.first_alone():
    if distributed.rank() == 1: raise InputError("data 'photos' does not exist")
"""
    found = ends(started({rank: ("", wrong) for rank in range(3)}, 3))
    assert found[0] == (2, f"error: rank 1 on {socket.gethostname()}: data 'photos' does not exist")
    assert found[1] == found[2] == (2, "")


def test_an_error_of_another_rank_is_said_by_rank_0():
    """Such as an image that only this rank reads, and that has changed: the others wait for it."""
    wrong = """
distributed.gather(0)
if distributed.rank() == 1: raise InputError("'a.jpg' was changed")
distributed.gather(1)
"""
    found = ends(started({rank: ("", wrong) for rank in range(3)}, 3))
    assert found[0] == (2, f"error: rank 1 on {socket.gethostname()}: 'a.jpg' was changed")
    assert found[1][0] == 2 and found[2] == (1, "")


def test_an_error_of_another_rank_is_said_after_a_signal_too():
    """torchrun sends one to all when the first ends."""
    wrong = """
from crlf.runtime.interrupts import Interrupted
distributed.gather(0)
if distributed.rank() == 1: raise InputError("'a.jpg' was changed")
import time; time.sleep(2)
raise Interrupted(15, "stopped: nothing was written")
"""
    found = ends(started({rank: ("", wrong) for rank in range(2)}, 2))
    assert found[0] == (2, f"error: rank 1 on {socket.gethostname()}: 'a.jpg' was changed")


def test_a_host_that_is_gone_without_a_word_is_named():
    """A stopped process sends nothing, as a host without power: the sockets stay open."""
    processes = started({rank: ("", VANISH.format(rank=1)) for rank in range(3)}, 3)
    try:
        said = {rank: processes[rank].communicate(timeout=100)[1].strip() for rank in (0, 2)}
    finally:
        processes[1].send_signal(signal.SIGKILL)
    gone = "rank 1 of 3 is gone, so all stop: --resume continues from the last checkpoint, on any number of processes"
    assert said == {0: gone, 2: ""}
    assert [processes[rank].returncode for rank in (0, 2)] == [1, 1]
    processes[1].communicate()


def test_rank_0_gone_without_a_word_is_named_too():
    """The others lose the store with it."""
    processes = started({rank: ("", VANISH.format(rank=0)) for rank in range(2)}, 2)
    try:
        said = processes[1].communicate(timeout=100)[1].strip()
    finally:
        processes[0].send_signal(signal.SIGKILL)
    assert said.startswith("rank 0 of 2 is gone, so all stop") and processes[1].returncode == 1
    processes[0].communicate()


def test_a_pause_that_is_shorter_and_a_rank_that_leaves_first_end_nothing():
    """A silence of half the limit, and a rank that is longer at work than the limit when all others have left."""
    pause = """
import subprocess, time
if distributed.rank() == 1:
    me = os.getpid()
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {me}"])
    os.kill(me, signal.SIGSTOP)
distributed.gather(1)
if distributed.rank() == 1: time.sleep(5)
"""
    found = ends(started({rank: ("", pause) for rank in range(2)}, 2))
    assert [code for code, _ in found.values()] == [0, 0]
    assert "gone" not in found[0][1] + found[1][1]  # torch may remark that the store is closed
