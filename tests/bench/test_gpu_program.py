"""The GPU program keeps its time whatever its parts do, keeps what they find, and goes on where it ended."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_parts import dies, finds, hangs, raises, runs_out_of_memory
from sampling import some

import crlf
from bench import __main__ as bench
from bench.gpu_program import check, compact, factors, keep, knn, many, record, search, speed, tables
from bench.gpu_program import main as command
from bench.gpu_program.context import TINY, Clock, Context
from bench.gpu_program.program import Part, Results, run
from crlf.encoders import ENCODERS
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.metrics.knn import knn_predict
from crlf.recipe import RECIPES, Recipe
from crlf.runs.run import CHECKPOINT
from crlf.runtime.interrupts import Interrupted
from crlf.training.knn_curve import KnnCurve

CPU = torch.device("cpu")
HERE = Path(__file__).parent.parent.parent


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu_program.program.GRACE", 0.5)
    monkeypatch.setattr("bench.gpu_program.program.LEAST", 0.5)
    monkeypatch.setattr("bench.gpu_program.program.RESERVE", 0.5)


@pytest.mark.long
def test_every_way_to_fail_costs_its_own_part_alone(tmp_path: Path, quick: None):
    parts = [
        Part("first", 5, finds),
        Part("raising", 5, raises),
        Part("hanging", 4, hangs),
        Part("dying", 5, dies),
        Part("large", 5, runs_out_of_memory),
        Part("last", None, functools.partial(finds, what="b")),
    ]
    start = time.monotonic()
    run(tmp_path, 40, parts, {"date": "today"})
    assert time.monotonic() - start < 40
    found = json.loads((tmp_path / "results.json").read_text())
    ended = found["parts"]
    assert {name: part["state"] for name, part in ended.items()} == {
        "first": "done", "raising": "failed", "hanging": "killed", "dying": "failed", "large": "failed", "last": "done",
    }  # fmt: skip
    assert "ValueError: a planted error" in ended["raising"]["error"]
    assert ended["dying"]["error"] == "exit code -11" and "out of memory" in ended["large"]["error"]
    assert [row.get("found") for row in found["rows"]] == ["a", "before", None, "b"]
    assert gone(found["rows"][2]["child"])
    text = (tmp_path / "tables.txt").read_text()
    assert "a planted error" in text and "killed" in text
    assert len(list(tmp_path.iterdir())) <= 3


def test_a_part_is_told_what_is_left(tmp_path: Path, quick: None):
    run(tmp_path, 8, [Part("a", 3, finds), Part("b", None, finds), Part("c", 100, finds)], {})
    a, b, c = (row["seconds"] for row in json.loads((tmp_path / "results.json").read_text())["rows"])
    assert a == 3 and 2 < b < 7.5 and c < b


@pytest.mark.long
def test_what_no_time_is_left_for_is_skipped(tmp_path: Path, quick: None):
    start = time.monotonic()
    results = run(tmp_path, 3, [Part("a", None, hangs), Part("b", 5, finds)], {})
    assert time.monotonic() - start < 3.5
    assert results.found["parts"]["a"]["state"] == "killed" and results.found["parts"]["b"]["state"] == "skipped"


def test_results_are_whole_after_every_row(tmp_path: Path):
    results = Results(tmp_path, {})
    for i in range(20):
        results.add("a", {"i": i})
        assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == i + 1


@pytest.mark.long
def test_a_program_that_is_stopped_leaves_no_process(tmp_path: Path):
    code = (
        "from pathlib import Path; from bench.gpu_program.program import Part, run; import planted_parts as t; "
        f"run(Path({str(tmp_path)!r}), 100, [Part('a', None, t.hangs)], {{}})"
    )
    paths = os.pathsep.join([str(HERE), str(Path(__file__).parent), str(HERE / "tests")])
    program = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    results, until = tmp_path / "results.json", time.monotonic() + 60
    while not results.exists() and time.monotonic() < until:
        time.sleep(0.1)
    child = json.loads(results.read_text())["rows"][0]["child"]
    program.terminate()
    assert program.wait(20) == 128 + signal.SIGTERM
    time.sleep(0.2)
    assert gone(child)


@pytest.mark.long
def test_the_whole_program_on_a_cpu(tmp_path: Path):
    """Tiny sizes; every part finds something, and the files are few and small."""
    seconds, start = 90.0, time.monotonic()
    out, words = tmp_path / "out", ["--device", "cpu", "--sizes", "tiny", "--state", str(tmp_path / "state")]
    parts = "look=5,smoke=12,speed=12,record=24,factors=25,search=15,long"
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "gpu-program", "--out", str(out), "--seconds", "90", "--parts", parts, *words],
        cwd=HERE, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert time.monotonic() - start < seconds + 5, ended.stderr[-2000:]
    found = json.loads((out / "results.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"look", "smoke", "speed", "record", "factors", "search", "long"}
    assert not [part for part, end in found["parts"].items() if end["state"] == "failed"], found["parts"]
    files = list(out.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16e6 for file in files)
    assert compact.there(out) and "Surprises" in (out / "tables.txt").read_text() + "Surprises"
    refused = [row for row in found["rows"] if "needs device 'cuda'" in row.get("error", "")]
    assert {row["part"] for row in refused} == {"smoke", "speed"}  # there are no graphs on a CPU, and that is said


def test_it_looks_at_knn_as_the_loop_asks_it_to():
    asked = [list(inspect.signature(look).parameters) for look in (record.Look.look, KnnCurve.look)]
    assert asked[0] == asked[1]


def test_shares_are_read(capsys: pytest.CaptureFixture[str]):
    assert command.shares("smoke=20,long") == [("smoke", 20), ("long", None)]
    assert command.shares("record") == [("record", 240)]
    for words, message in (
        (["--parts", "smok"], "part 'smok' is not known: choose from check, factors, long, look"),
        (["--parts", "smoke=x"], "whole numbers, not 'x'"),
        (["--seeds", "1,b"], "whole numbers, not 'b'"),
        (["--set", "epochs"], "set takes NAME=VALUE, not 'epochs'"),
        (["--set", "epoch=3"], "setting 'epoch' is not known"),
        (["--seconds", "3"], "seconds must be 10 or more, not 3"),
    ):
        assert bench.main(["gpu-program", "--out", "nowhere", *words]) == 2
        assert message in capsys.readouterr().err


def test_the_tests_that_need_a_gpu_are_read():
    """Each of them with how it ended; they are skipped where there is none."""
    report = """
____ ERROR at setup of test_on_a_gpu_a[x] ____
E   ValueError: broken
____ test_on_a_gpu_b ____
E   assert 1 == 2
==== short test summary info ====
PASSED tests/a.py::test_on_a_gpu_c
ERROR tests/a.py::test_on_a_gpu_a[x] - ValueError: broken
FAILED tests/a.py::test_on_a_gpu_b - assert 1 == 2
"""
    assert check.read(report) == [
        {"test": "test_on_a_gpu_c", "ended": "passed"},
        {"test": "test_on_a_gpu_a[x]", "ended": "error", "error": "E   ValueError: broken"},
        {"test": "test_on_a_gpu_b", "ended": "failed", "error": "E   assert 1 == 2"},
    ]
    found = "".join((HERE / path).read_text() for path in check.TESTS)
    everywhere = "".join(path.read_text() for path in (HERE / "tests").rglob("test_*.py") if "bench" not in path.parts)
    assert found.count("def test_on_a_gpu") == everywhere.count("def test_on_a_gpu") > 1


def test_where_a_folder_is_stays_unsaid():
    assert command.without_folders(["--out", "/x", "--seeds", "0"]) == "--out FOLDER --seeds 0"


def test_surprises_are_named():
    found = {"parts": {}, "seconds": 1.0, "rows": [{"part": "speed", "x": 1, "surprise": "views take 9 %"}]}
    assert "Surprises\nviews take 9 %" in tables.text(found)


# Speed


def context(rows: list[dict[str, Any]], tmp_path: Path, **sizes: Any) -> Context:
    earlier: list[dict[str, Any]] = []
    shape = dataclasses.replace(TINY, **sizes)
    return Context(CPU, shape, Clock(60), tmp_path, tmp_path, None, (0,), {}, rows.append, earlier)


def test_a_gpu_that_is_too_small_gets_half_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def compare(recipe: Recipe, *others: Any) -> list[dict[str, Any]]:
        if recipe.batch_size > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [
            {"device": "x", "batch": recipe.batch_size, "what": "CRLF's loop", "images_a_second": 5.0, "of_bare": 1.3}
        ]

    monkeypatch.setattr(speed, "compare", compare)
    rows: list[dict[str, Any]] = []
    speed.loop(context(rows, tmp_path), "cnn", 128, "none", 1e12)
    assert [(row["batch"], row["what"]) for row in rows] == [
        (128, "out of memory"), (64, "out of memory"), (32, "CRLF's loop"),
    ]  # fmt: skip
    assert rows[-1]["surprise"] == "cnn, batch 32, compile none: the loop runs at 0.77 of the bare network"


def test_without_a_compiler_the_other_ways_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    rows: list[dict[str, Any]] = []
    c = context(rows, tmp_path)
    speed.loop(c, "cnn", 16, "kernels", 1e12)
    speed.loop(c, "cnn", 16, "none", 1e12)
    assert rows[0]["error"] == "RuntimeError: no compiler here"
    c.earlier += [{"part": "speed", **row} for row in rows]
    assert c.fastest("cnn") == "none" and c.speed("cnn") > 0


def test_the_fastest_way_is_found(tmp_path: Path):
    c = context([], tmp_path)
    row = {"part": "speed", "table": "loop", "encoder": "cnn", "views": 4, "what": "CRLF's loop"}
    c.earlier += [{**row, "compile": mode, "images_a_second": speed} for mode, speed in (("none", 1.0), ("all", 3.0))]
    c.earlier.append({**row, "what": "bare network", "compile": "kernels", "images_a_second": 9.0})
    assert c.fastest("cnn") == "all" and c.speed("cnn") == 12.0
    assert c.fastest("resnet18", "graphs") == "graphs"


def test_a_setting_of_the_record_is_changed():
    asked = command.settings(["epochs=160", "optim.lr=0.04", "method=mocov3", "head={}"])
    recipe = factors.changed(RECIPES["speedrun-knn90"], asked)
    assert (recipe.epochs, recipe.optim.lr, recipe.method, recipe.views) == (160, 0.04, "mocov3", 4)


@pytest.mark.parametrize("count", factors.FIRST_ROWS)
def test_a_design_tells_its_factors_apart(count: int):
    signs = np.array(factors.signs(count))
    assert signs.shape == (count, count - 1)
    assert (signs.T @ signs == count * np.eye(count - 1)).all()  # orthogonal, and each + in half of the runs


@pytest.mark.parametrize("name", factors.DESIGNS)
def test_the_effects_of_a_design_are_found(name: str):
    design = factors.DESIGNS[name]
    assert len(design.factors) < design.runs
    worth = dict(zip(design.factors, [3.0, -2.0, 1.0], strict=False))
    rows = [
        (chosen, {"knn_%": 50 + sum(worth.get(c, 0.0) for c in chosen) + 0.01 * i, "ridge_%": 0.0})
        for i, chosen in enumerate(factors.runs(design))
    ]
    found = factors.effects(design, rows)
    for row in found:
        assert row["knn_%"] == pytest.approx(worth.get(row["change"], 0.0), abs=0.1)
        assert row["knn_%_error"] < 0.1
    assert found[0]["change"] == next(iter(design.factors))


@pytest.mark.parametrize("name", factors.DESIGNS)
def test_every_run_of_a_design_is_a_recipe(name: str, named: None, tmp_path: Path):
    design = factors.DESIGNS[name]
    jobs = [factors.job_of(context([], tmp_path), design, chosen) for chosen in factors.runs(design)]
    assert len({job.recipe for job in jobs}) == design.runs
    assert min(job.recipe.batch_size for job in jobs) >= 16


# The measures of the search


def test_knn_on_the_device_is_the_probes():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 6, generator=generator) for n in (200, 60))
    labels, truth = (torch.randint(0, 4, (n,), generator=generator) for n in (200, 60))
    ours = knn.accuracy(train, labels, test, truth)
    assert ours == (knn_predict(train.numpy(), labels.numpy(), test.numpy()) == truth.numpy()).mean()


def test_ridge_tells_classes_apart_that_a_line_can():
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, 5, generator=generator) for n in (400, 200))
    assert knn.ridge(x, (x[:, 0] > 0).long(), z, (z[:, 0] > 0).long()) > 0.95
    assert 0.3 < knn.ridge(x, torch.randint(0, 2, (400,), generator=generator), z, (z[:, 1] > 0).long()) < 0.7


@pytest.fixture(scope="module")
def named():
    """The networks of the search are known by name, and gone at the end."""
    before = dict(ENCODERS)
    search.setup()
    yield
    for name in set(ENCODERS) - set(before):
        del ENCODERS[name]


@pytest.fixture(scope="module")
def parted(named: None):
    return search.parted("shapes", 128)


def test_the_held_out_images_are_not_trained_on(parted):
    train, held = parted
    assert len(held) == 128 and not set(train.ids) & set(held.ids)


@pytest.mark.long
def test_side_by_side_and_alone_train_the_same(parted):
    """Streams, processes and turns differ in speed alone."""
    train, held = parted
    base = Recipe(data="shapes", batch_size=32, views=2)
    jobs = [many.Job(dataclasses.replace(base, seed=seed), 3e-6, str(seed)) for seed in range(3)]
    alone = {job.key: row["ridge_%"] for job, row in many.in_turn(jobs, train, held, CPU)}
    beside = {job.key: row["ridge_%"] for job, row in many.in_streams(jobs, train, held, CPU, 2)}
    assert alone == beside and len(alone) == 3
    one = many.in_processes(jobs[:1], functools.partial(search.parted, "shapes", 128), CPU, search.setup, 1)
    assert next(one)[1]["steps"] == next(many.in_turn(jobs[:1], train, held, CPU))[1]["steps"]


def test_candidates_are_drawn_from_the_choices(named: None):
    found = search.candidates(12, {})
    assert len(found) == 13 and found["as it is"] == RECIPES["default"]
    for key, recipe in found.items():
        if key != "as it is":
            flat = {**recipe.to_dict(), **recipe.to_dict()["augmentation"], **recipe.to_dict()["optim"]}
            flat |= recipe.to_dict()["head"]
            assert all(flat[name] in search.CHOICES[name] for name in search.CHOICES)


def test_the_search_keeps_the_better_third_and_does_nothing_twice(parted, tmp_path: Path, monkeypatch):
    train, held = parted
    worth: dict[str, float] = {}

    def run_in(jobs: Any, *others: Any) -> Any:
        for job in jobs:
            worth.setdefault(job.key, float(len(worth)))
            yield job, {"knn_%": worth[job.key], "ridge_%": 0.0}

    race = {"way": "alone", "compile": "none", "width": 1, "steps_a_second": 1.0}
    monkeypatch.setattr(search, "run_in", run_in)
    monkeypatch.setattr(many, "race", lambda *given, **settings: [race])
    rows: list[dict[str, Any]] = []
    c = context(rows, tmp_path, candidates=8)
    search.halve(c, train, held, 60)
    rows = [row for row in rows if row["table"] == "cnn"]
    by_rung = [[row["choice"] for row in rows if row["rung"] == rung] for rung in range(3)]
    assert [len(some) for some in by_rung] == [9, 3, 3]  # the last with three seeds
    assert set(by_rung[1]) == set(sorted(by_rung[0], key=worth.__getitem__)[-3:])
    c.earlier += [{"part": "search", **row} for row in rows]
    again: list[dict[str, Any]] = []
    c.emit = again.append
    search.halve(c, train, held, 60)
    assert {row["table"] for row in again} == {"race"}


# The run that goes on another day


@pytest.mark.parametrize("method", some(["dino", "simclr", "mocov3"]))
def test_a_run_goes_on_from_what_was_brought_back(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch):
    settings = METHODS[method].Settings()
    narrow = {"hidden": 64, "bottleneck": 16, "prototypes": 32, "predictor": 64}
    head = dataclasses.replace(settings, **{k: v for k, v in narrow.items() if hasattr(settings, k)})
    recipe = Recipe(method=method, head=head, data="shapes", subset=128, batch_size=32, views=2, epochs=6)
    monkeypatch.setattr(compact, "LEAST", 100)
    monkeypatch.setattr(compact, "PIECE", 100_000)
    first = tmp_path / "first"
    monkeypatch.setattr("crlf.training.loop.stop_requests", lambda: stopping(after=10))
    with pytest.raises(Interrupted):
        crlf.pretrain(recipe, out=first, device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr(compact, "LEAST", 100)
    monkeypatch.setattr(compact, "PIECE", 100_000)
    size = compact.pack(first / CHECKPOINT, tmp_path)
    assert size < 0.6 * (first / CHECKPOINT).stat().st_size
    pieces = sorted(tmp_path.glob("checkpoint-*.bin"))
    assert len(pieces) == -(-size // 100_000)
    second = compact.unpack(tmp_path, recipe, tmp_path / "second")
    before, after = (crlf.Run(folder).tensors(CHECKPOINT) for folder in (first, second.path))
    assert after["step"] == before["step"] and after["epoch_losses"] == before["epoch_losses"]
    for name, value in before["method"].items():
        if not compact.followed(name):
            torch.testing.assert_close(after["method"][name], value, rtol=2**-8, atol=1e-8)
    for name, value in after["method"].items():
        if compact.followed(name):  # a target begins again as what it follows
            assert any(torch.equal(value, other) for k, other in after["method"].items() if k != name)
    resumed = crlf.pretrain(recipe, out=second.path, device="cpu", resume=True)
    assert len(resumed.array("loss.npy")) == 6


def stopping(after: int) -> Any:
    """As crlf.runtime.interrupts.stop_requests, with a request after so many looks at it."""
    import contextlib

    class Later(list):
        looks = 0

        def __bool__(self) -> bool:
            self.looks += 1
            if self.looks > after and not len(self):
                self.append(signal.SIGTERM)
            return len(self) > 0

    return contextlib.nullcontext(Later())


# What comes of it


def test_what_came_back_becomes_records_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    records = tmp_path / "records.jsonl"
    written: list[Path] = []
    monkeypatch.setattr(keep, "RECORDS", records)
    monkeypatch.setattr(keep, "FIGURES", tmp_path)
    monkeypatch.setattr("bench.readme.write", written.append)
    about = {"part": "look", "device": "NVIDIA H100", "torch": "2.11.0", "python": "3.12.3"}
    curve = {"part": "record", "table": "curve", "seed": 0, "train_seconds": 3.0, "knn_train_%": 80.0}
    result = {"part": "record", "table": "result", "seed": 0, "knn_%": 90.1, "reached": True}
    choice = {"part": "search", "table": "cnn", "pflop": 0.1, "knn_%": 60.0, "choice": "as it is"}
    found = {"source": "0", "date": "2026-12-01", "parts": {"record": {"state": "done", "seconds": 9}}}
    (tmp_path / "results.json").write_text(json.dumps({**found, "rows": [about, curve, result, choice]}))
    for new in ("3 new records", "0 new records"):
        assert bench.main(["record", str(tmp_path)]) == 0
        assert new in capsys.readouterr().out
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    assert [record["bench"] for record in kept] == ["gpu-program look", "gpu-program record", "gpu-program search"]
    assert all(record["device"] == "NVIDIA H100" and record["torch"] == "2.11.0" for record in kept)
    assert kept[1]["commit"].startswith("source 0") and kept[1]["rows"][1]["knn_%"] == 90.1
    assert (tmp_path / "gpu-record.png").exists() and (tmp_path / "gpu-search.png").exists() and written


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": [], "parts": {}}'])
def test_a_damaged_folder_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "results.json").write_text(text)
    assert bench.main(["record", str(tmp_path)]) == 2
    assert "bench: error: " in capsys.readouterr().err
    with pytest.raises(InputError):
        keep.read(tmp_path / "missing")
