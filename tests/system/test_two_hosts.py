"""Two hosts train one run, with the commands of docs/scaling.md: equal to one process, whatever happens to the link.

Each host is a network namespace (root, and iproute2). Killed hosts take minutes: one is noticed to be gone after one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
from cluster import until
from paced import WORDS, program

from crlf.runs.run import ENCODER, LOSS, Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.system
EPOCHS = ("--epochs", "8", *WORDS)  # 48 steps


def command(elastic: bool, out: Path, *more: str) -> list[str]:
    """The command of the page, for one process a host and a small run."""
    [found] = [
        line for line in re.findall("^    (torchrun .*)$", PAGE, re.MULTILINE) if ("--nnodes 1:2" in line) == elastic
    ]
    changes = {
        "HOST:": "hosta:",
        "--nproc-per-node 8": "--nproc-per-node 1",
        "PHOTOS": "shapes",
        "/shared/run": str(out),
    }
    for old, new in {**changes, "--batch-size 4096": " ".join(EPOCHS)}.items():
        assert old in found, f"the command of docs/scaling.md has no {old}"
        found = found.replace(old, new)
    first, *rest = shlex.split(found)
    return [first, *more, *rest]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[hosts.Host, hosts.Host]]:
    if hindrance := hosts.hindrance():
        pytest.skip(hindrance)
    with hosts.two_hosts(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("straight")
    crlf = str(program(folder) / "crlf")
    subprocess.run([crlf, "pretrain", "shapes", *EPOCHS, "--out", str(folder / "run")], check=True, timeout=300)
    return Run.open(folder / "run")


def begun(pair: tuple[hosts.Host, hosts.Host], words: list[str], pace: float) -> list[subprocess.Popen]:
    folder = pair[0].folder
    path = f"{program(folder)}:{os.environ['PATH']}"
    return [host.start(words, folder / f"{host.name}.log", PATH=path, PACE=str(pace)) for host in pair]


def require_same(run: Run, straight: Run) -> None:
    a, b = run.tensors(ENCODER), straight.tensors(ENCODER)
    assert max((a[name].double() - b[name].double()).abs().max().item() for name in a) < 1e-6
    assert abs(run.array(LOSS) - straight.array(LOSS)).max() < 1e-6


def in_epoch(out: Path, count: int) -> None:
    until(lambda: len(Run(out).log()) >= count, 200, f"{out} has not come to epoch {count}")


def test_a_slow_link_that_is_cut_for_some_seconds_changes_nothing(pair, straight: Run, tmp_path: Path):
    out = tmp_path / "run"
    started = begun(pair, command(False, out), 0.2)
    for host in pair:
        host.slow_link("20mbit")
    in_epoch(out, 2)
    pair[1].link("down")
    time.sleep(2)
    before = len(Run(out).log())
    time.sleep(6)
    assert len(Run(out).log()) == before < 8  # they wait
    pair[1].link("up")
    assert [process.wait(timeout=300) for process in started] == [0, 0], said(tmp_path)
    assert Run(out).scores["processes"] == 2
    require_same(Run(out), straight)


def test_when_a_host_dies_the_run_goes_on_alone_on_the_other(pair, straight: Run, tmp_path: Path):
    """It loses its link first: so it cannot tell the other that it ends."""
    out = tmp_path / "run"
    started = begun(pair, command(True, out), 0.2)
    in_epoch(out, 2)
    pair[1].link("down")
    pair[1].kill()
    dead = time.monotonic()
    until(lambda: "is gone, so all stop" in (tmp_path / "hosta.log").read_text(), 150, "nobody noticed")
    assert 30 < time.monotonic() - dead < 120
    assert started[0].wait(timeout=300) == 0, said(tmp_path)
    started[1].wait(timeout=10)
    assert Run(out).scores["processes"] == 1
    require_same(Run(out), straight)
    steps = [row["step"] for row in Run(out).log()]
    assert steps == sorted(set(steps)) and steps[-1] == 48


def test_a_host_that_never_comes_ends_the_wait(pair, tmp_path: Path):
    words = command(False, tmp_path / "run", "--rdzv-conf", "join_timeout=15")
    [process] = begun(pair[:1], words, 0)
    assert process.wait(timeout=120) == 1
    assert "RendezvousTimeoutError" in said(tmp_path) and "RendezvousTimeoutError" in PAGE
    assert not (tmp_path / "run").exists()


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))
