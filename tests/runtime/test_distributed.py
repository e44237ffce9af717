"""Several processes are one: the loss, every gradient, twenty steps of training, a stop, and a command of torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from small_methods import TEACHER, teacher
from torch import Tensor

from crlf import encoders
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.optim import OPTIMIZERS
from crlf.runs.run import CHECKPOINT, ENCODER, LOSS, VIEWS, Run
from crlf.runtime import distributed
from crlf.training import pretrain

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
WORLDS = (2, 4)
EVERY = pytest.mark.parametrize("name", METHODS)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What tests/two_ranks.py found: by the names 1-0 (alone), 2-0 and 2-1 (processes and rank)."""
    places: list[dict[str, str]] = [{}]
    for world in WORLDS:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
        places += [{"RANK": str(rank), **address} for rank in range(world)]
    command = [sys.executable, str(ROOT / "tests" / "two_ranks.py"), str(folder)]
    same = {TEACHER: teacher()}
    started = [subprocess.Popen(command, **PIPES | {"env": ENVIRONMENT | same | place}) for place in places]
    try:
        for process in started:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference, and where it is."""
    assert a.keys() == b.keys()
    return max(((a[key].double() - b[key].double()).abs().max().item(), key) for key in a)


@EVERY
@pytest.mark.parametrize("rank", ["2-0", "2-1", "4-0", "4-3"])
@pytest.mark.parametrize("what", ["step", "parted"])
def test_loss_statistics_and_every_gradient_are_those_of_one_process(results, name: str, rank: str, what: str):
    """And with the rank's share in parts, where batch norms are frozen."""
    one, several = results["1-0"][what][name], results[rank][what][name]
    assert sum(key.startswith("gradient") for key in one) > 5
    assert furthest(one, several)[0] < 1e-10, furthest(one, several)


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.takes_local])
@pytest.mark.parametrize("rank", ["2-1", "4-3"])
def test_with_small_views_too(results, name: str, rank: str):
    one, several = results["1-0"]["local"][name], results[rank]["local"][name]
    assert sum(key.startswith("gradient") for key in one) > 5
    assert furthest(one, several)[0] < 1e-10, furthest(one, several)


@EVERY
@pytest.mark.parametrize("world", WORLDS)
def test_twenty_steps_of_training_give_the_weights_of_one_process(results, name: str, world: int):
    one, first, last = (results[key]["trained"][name] for key in ("1-0", f"{world}-0", f"{world}-{world - 1}"))
    assert furthest(first, last)[0] == 0  # the ranks never drift apart
    assert furthest(one, first)[0] < 1e-6, furthest(one, first)
    assert abs(one["losses"][1] - one["losses"][0]) > 1e-4  # and they have moved


@EVERY
@pytest.mark.parametrize("rank", ["2-0", "2-1", "4-0", "4-3"])
@pytest.mark.parametrize("what", ["step", "parted"])
def test_processes_with_a_part_of_every_weight_are_one_process(results, name: str, rank: str, what: str):
    """FSDP2: the loss, statistics and every gradient, whole."""
    one, several = results["1-0"]["sharded"]["steps"][name][what], results[rank]["sharded"]["steps"][name][what]
    assert furthest(one, several)[0] < 1e-10, furthest(one, several)


@pytest.mark.parametrize("world", WORLDS)
def test_sharded_runs_have_the_weights_of_one_process(results, world: int):
    """With every optimizer; stopped, saved whole and resumed; and a target whose weights follow in parts."""
    one, several = results["1-0"]["sharded"]["trained"], results[f"{world}-0"]["sharded"]["trained"]
    assert {*OPTIMIZERS, "resumed"} <= set(one)
    for name in one:
        assert furthest(one[name], several[name])[0] < 1e-6, (name, furthest(one[name], several[name]))


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_alone(results, folder: Path, monkeypatch):
    assert results["2-0"]["stopped"] == results["2-1"]["stopped"] == (143, 8)
    monkeypatch.setitem(encoders.ENCODERS, "cnn", encoders.ENCODERS["cnn"])
    monkeypatch.setattr(pretrain, "State", pretrain.State)
    monkeypatch.setattr(pretrain, "tell_cost", pretrain.tell_cost)
    two_ranks.shrink()
    resumed = two_ranks.twenty_steps("byol", folder / "stopped2", resume=True)
    assert furthest(results["1-0"]["trained"]["byol"], resumed)[0] < 1e-6


def test_the_ranks_agree_on_the_highest(results):
    assert [results[key]["highest"] for key in ("1-0", "2-0", "2-1")] == [[0, 0], [1, 0], [1, 0]]


def test_what_the_first_rank_refuses_ends_all(results):
    """One line is said, by the first; and where it is alone it does the same."""
    said = "holds another run: --resume continues it, --overwrite replaces it"
    assert said in results["1-0"]["refused"] and said in results["2-0"]["refused"]
    assert results["2-1"]["refused"] == "exit 2"


def test_when_a_rank_dies_the_others_name_it_and_the_run_goes_on_alone(results, tmp_path: Path, monkeypatch):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--standalone"]
    start = time.monotonic()
    script = [str(ROOT / "tests" / "two_ranks.py"), str(out), "killed"]
    done = subprocess.run([*command, *script], timeout=120, **PIPES)
    assert done.returncode != 0 and time.monotonic() - start < 60
    gone = "rank 2 of 3 is gone, so all stop: --resume continues from the last checkpoint, on any number of processes"
    assert done.stderr.count(gone) == 1, done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr  # torchrun's report
    monkeypatch.setitem(encoders.ENCODERS, "cnn", encoders.ENCODERS["cnn"])
    monkeypatch.setattr(pretrain, "State", pretrain.State)
    monkeypatch.setattr(pretrain, "tell_cost", pretrain.tell_cost)
    two_ranks.shrink()
    resumed = two_ranks.twenty_steps("byol", out, resume=True)
    assert furthest(results["1-0"]["trained"]["byol"], resumed)[0] < 1e-6


PROGRAM = """
import runpy, sys
from crlf.pipelines import images_to_report as pipeline
for stage in ("embed", "probe", "draw", "report", "summary"):
    setattr(pipeline, stage, lambda *run, stage=stage, **settings: print(stage, "once"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("more", [(), ("--shard", "full", "--micro-batch", "8")], ids=["replicas", "shards"])
def test_under_torchrun_the_script_trains_on_all_and_evaluates_on_one(tmp_path: Path, more: tuple[str, ...]):
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "a run of é"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = [str(tmp_path / "program.py"), str(ROOT / "simclr_train.py"), "shapes", "--subset", "64"]
    words = ["--epochs", "1", "--batch-size", "31", "--views", "2", "--device", "cpu", "--out", str(out)]
    done = subprocess.run([*command, *script, *words, *more], timeout=300, **PIPES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 5 and done.stderr.count("epoch 1/1 ") == 1
    run = Run.open(out)
    assert run.scores["processes"] == 2 and len(run.log()) == 1
    assert {ENCODER, CHECKPOINT, VIEWS, LOSS} <= set(run.held())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def as_one_of(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(world))


def test_a_batch_smaller_than_the_processes(monkeypatch: pytest.MonkeyPatch):
    as_one_of(monkeypatch, 3)
    distributed.require_share(3, torch.device("cpu"))
    with pytest.raises(InputError, match="batch_size must be at least the 3 processes, not 2"):
        distributed.require_share(2, torch.device("cpu"))


def test_devices_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch):
    as_one_of(monkeypatch, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="nproc-per-node must be at most the 2 GPUs of this machine, not 4"):
        distributed.require_share(8, torch.device("cuda", 0))
    with pytest.raises(InputError, match="device 'mps' trains with one process, not 4"):
        distributed.require_share(8, torch.device("mps"))
