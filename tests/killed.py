"""Kill a training again and again, resume it each time, and hold what comes of it against one that was left alone.

    OMP_NUM_THREADS=1 python tests/killed.py FOLDER MOMENTS STRIDE SEED

Each training is a process forked from this one. It is killed (SIGKILL) before and behind every STRIDE-th of the calls
that sync a file or rename one, and at MOMENTS random moments besides. Prints JSON: the number of
kills, and of each run that ended otherwise than the one left alone, what differs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import crlf
from crlf import encoders
from crlf.encoders import CNN
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOG, LOSS, RECIPE
from crlf.training import pretrain

SETTINGS = Recipe(data="shapes", subset=96, batch_size=16, views=2, epochs=4, precision="float32")
WRITING = ("replace", "fsync")  # functions of os
SAME = (ENCODER, LOSS, "train_emb.npy", "test_emb.npy")
LOGGED = ("step", "epoch", "loss", "lr", "gradient_norm")  # what is measured beside them depends on the clock


def job(out: Path) -> None:
    """What a user would do: begin, or go on."""
    crlf.pretrain(SETTINGS, out=out, device="cpu", resume=(out / RECIPE).exists())
    crlf.embed(out, device="cpu")


def forked(out: Path, before: Callable[[], None] = lambda: None) -> int:
    """The pid of a process that does the job, quietly, and ends with 0 when it is done."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (out.parent / f"{out.name}.said").open("a") as said:
            os.dup2(said.fileno(), 2)
            os.dup2(said.fileno(), 1)
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared by all forks: one that is killed would keep it
        before()
        job(out)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def done(pid: int) -> bool:
    """Wait for the process; whether it came to its end."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"it ended with signal {os.WTERMSIG(status)}"
        return False
    assert os.WEXITSTATUS(status) == 0, "it failed: see the file .said"
    return True


def kill_at(call: int, late: bool) -> Callable[[], None]:
    """Let the process kill itself at such a call of what `WRITING` names, or just behind it."""

    def arm() -> None:
        left = [call]
        for name in WRITING:
            original = getattr(os, name)

            def act(*args: Any, original: Callable[..., Any] = original) -> Any:
                left[0] -= 1
                if left[0] == 0 and not late:
                    os.kill(os.getpid(), signal.SIGKILL)
                value = original(*args)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return value

            setattr(os, name, act)

    return arm


def at_writes(folder: Path, stride: int) -> Iterator[tuple[Path, int]]:
    """Runs that were killed once at some write each, and went on."""
    for call in itertools.count(1, stride):
        for late in (False, True):
            out = folder / f"write-{call}-{'late' if late else 'early'}"
            if done(forked(out, kill_at(call, late))):
                return  # there are fewer writes
            assert done(forked(out))
            yield out, 1


def at_random(folder: Path, moments: int, longest: float, chance: random.Random) -> Iterator[tuple[Path, int]]:
    """Runs that were killed at random moments until they had come to their end, each at most `longest` seconds on."""
    total = 0
    while total < moments:
        out, kills = folder / f"random-{total}", 0
        while True:
            pid = forked(out)
            if kills < 8 and total + kills < moments:
                time.sleep(chance.uniform(0, longest))
                os.kill(pid, signal.SIGKILL)
            if done(pid):
                break
            kills += 1
        total += kills
        if kills:
            yield out, kills
        shutil.rmtree(out, ignore_errors=True)


def different(one: Path, other: Path) -> list[str]:
    """What is not the same in two run folders, or should not be there."""
    a, b = crlf.Run(one), crlf.Run(other)
    found = []
    for name in SAME:
        if name == ENCODER:
            ours, theirs = a.tensors(name), b.tensors(name)
            same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        else:
            same = a.file(name).read_bytes() == b.file(name).read_bytes()
        if not same:
            found.append(name)
    logs = [[[row.get(key) for key in LOGGED] for row in run.log() if row["epoch"] % 1 == 0] for run in (a, b)]
    if logs[0] != logs[1]:
        found.append(LOG)
    return found + sorted(path.name for path in other.iterdir() if path.name.startswith("."))


def main(folder: Path, moments: int, stride: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    encoders.ENCODERS["cnn"] = lambda channels, size, regions: CNN(channels, regions, widths=(4, 8, 8), read=2)
    pretrain.tell_cost = lambda state, data: None
    job(folder / "first")  # here, so that no process has to import anything, and kills meet the work itself
    alone = folder / "alone"
    start = time.monotonic()
    assert done(forked(alone))
    longest = time.monotonic() - start
    kills: dict[str, int] = {"write": 0, "random": 0}
    bad = {}
    for kind, trials in (
        ("write", at_writes(folder, stride)),
        ("random", at_random(folder, moments, longest, random.Random(seed))),
    ):
        for out, count in trials:
            kills[kind] += count
            if found := different(alone, out):
                bad[out.name] = found
            shutil.rmtree(out)
    return {"kills": kills, "seconds of a run": longest, "different": bad}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
