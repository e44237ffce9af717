"""The measurements: every name has a module, a record tells its circumstances, speeds are compared in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import mmap

import pytest
import torch
from PIL import Image

from bench import __main__ as bench
from bench import accuracy, finetuning, gpu, held, loss_memory, methods, plan, short_runs, soak
from bench.timing import in_turn, median_ratio
from crlf.data import SOURCES
from crlf.methods import METHODS
from crlf.recipe import Recipe
from crlf.training.state import State

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@pytest.mark.parametrize("name", bench.BENCHES)
def test_every_name_has_its_measurement(name: str):
    module = importlib.import_module(f"bench.{name.replace('-', '_')}")
    assert callable(module.measure) and module.__doc__


def test_list_names_them(capsys):
    assert bench.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in bench.BENCHES)


def test_an_unknown_name_is_offered_the_nearest(capsys):
    assert bench.main(["view"]) == 2
    assert "Did you mean 'views'?" in capsys.readouterr().err


def test_a_record_is_appended_with_its_circumstances(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr("bench.newton_schulz.measure", lambda: [{"optimizer": "x", "ms_a_step": 1234.5}])
    for _ in range(2):
        assert bench.main(["newton-schulz", "--json", str(tmp_path / "one.json")]) == 0
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 2 and records[1] == json.loads((tmp_path / "one.json").read_text())
    assert {"command", "commit", "torch", "device", "date", "rows"} <= set(records[0])
    assert "1,234" in capsys.readouterr().out


def test_things_are_timed_in_turn_and_the_first_round_is_not_counted():
    calls: list[str] = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_the_ratio_is_the_median_over_rounds():
    assert median_ratio([2, 4, 30], [1, 2, 3]) == 2


def test_committed_records_are_whole():
    for line in bench.RECORDS.read_text().splitlines() if bench.RECORDS.exists() else []:
        record = json.loads(line)
        assert (
            record["bench"].partition(" ")[0] in {*bench.BENCHES, *bench.COMMANDS}
            and record["rows"]
            and record["commit"]
        )


def test_the_pages_say_what_the_records_say():
    pages = bench.readme.pages(bench.RECORDS)
    stale = [path.name for path, page in pages.items() if path.read_text(encoding="utf-8") != page]
    assert len(pages) == 12 and not stale, "python -m bench readme"


def test_a_method_is_measured_on_held_out_images(monkeypatch):
    """In tiny form: a second of training, some shapes in the place of CIFAR-10."""
    few = [part.first(256) for part in SOURCES["shapes"](None)]
    monkeypatch.setattr(methods, "held_out", lambda data_dir=None: few)
    monkeypatch.setattr("bench.ablation.held_out", lambda data_dir=None: few)
    monkeypatch.setitem(SOURCES, "held-out", None)  # taken away again afterwards
    (row,) = methods.measure(minutes=0.02, seeds=(0,), names=("byol",))
    assert row["method"] == "byol" and 5 < float(row["kNN_%"].split()[0]) <= 100 and row["train seconds"] < 6


def test_methods_are_measured_in_turn_with_equal_time(monkeypatch):
    monkeypatch.setitem(SOURCES, "held-out", None)
    seen = []
    monkeypatch.setattr(methods, "score", lambda recipe: seen.append(recipe) or {"kNN %": 10.0 * recipe.seed})
    rows = methods.measure()
    assert [r.method for r in seen] == list(methods.ALONE) * 3 and [r.seed for r in seen[:: len(methods.ALONE)]] == [
        0,
        1,
        2,
    ]
    assert {(r.encoder, r.data, r.views, r.minutes) for r in seen} == {("cnn", "held-out", 2, methods.MINUTES)}
    assert rows == [{"method": name, "seeds": 3, "kNN %": "10.0 ± 10.0"} for name in methods.ALONE]
    assert set(METHODS) - set(methods.ALONE) == {"distill"}


def test_the_summary_of_seeds_by_hand():
    found = methods.summary([{"kNN %": 1.0, "PFLOP": 2.0}, {"kNN %": 2.0, "PFLOP": 4.0}, {"kNN %": 6.0, "PFLOP": 0.0}])
    assert found == {"seeds": 3, "kNN %": "3.0 ± 2.6", "PFLOP": 2.0}  # the root of 7
    assert methods.summary([{"kNN %": 1.0}]) == {"seeds": 1, "kNN %": "1.0"}


@pytest.mark.parametrize("name", METHODS)
def test_no_head_is_wider_than_the_measure_says(name: str):
    head = dataclasses.asdict(methods.head(name))
    assert all(head.get(width, 0) <= 512 for width in ("hidden", "projection", "predictor", "bottleneck"))
    other = {k: v for k, v in dataclasses.asdict(METHODS[name].Settings()).items() if v != head[k]}
    assert all(value > 512 for value in other.values())


@pytest.mark.long
def test_fine_tuning_is_measured_on_held_out_images(monkeypatch, cifar10):
    train, test = cifar10
    monkeypatch.setattr(finetuning, "held_out", lambda data_dir=None: (train.first(300), test.first(100)))
    monkeypatch.setitem(SOURCES, "held-out", None)  # taken away again afterwards
    recipe = Recipe(data="held-out", subset=300, batch_size=64, views=2, epochs=1)
    monkeypatch.setattr("crlf.evaluation.finetune.LEAST_STEPS", 4)
    (row,) = finetuning.measure(labels=(5,), seeds=(0, 1), recipe=recipe)
    assert row["labels"] == 50 and row["seeds"] == 2
    assert all(5 < float(row[name].split()[0]) < 60 for name in ("linear layer_%", "all weights_%"))


@pytest.fixture
def ablation():
    """The module, prepared; its additions to the tables go at the end."""
    from bench import ablation

    tables = (ablation.PUBLISHED, ablation.SOURCES, ablation.ENCODERS, ablation.METHODS)
    before, threads = [dict(table) for table in tables], torch.get_num_threads()
    ablation.prepare()
    yield ablation
    torch.set_num_threads(threads)
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def test_every_change_of_the_ablation_changes_something_and_can_take_a_step(ablation, cifar10):
    recipes = ablation.changes()
    assert len({json.dumps(recipe.to_dict()) for recipe in recipes.values()}) == len(recipes)
    for recipe in recipes.values():
        state = State(recipe, cifar10[0].first(128 if recipe.batch_size < 256 else 256), torch.device("cpu"))
        loss, _ = state.method([torch.randn(4, 3, 24, 24) for _ in range(recipe.views)])
        loss.backward()
        state.method.after_step(1.0)
        assert loss.isfinite()


def test_the_ablation_holds_out_what_it_chooses_by(ablation, cifar10):
    train, held = ablation.held_out()
    assert len(train) == 45_000 and len(held) == 5000
    assert not set(train.ids) & set(held.ids)


@pytest.mark.long
def test_nt_xent_in_chunks_needs_less_memory():
    rows = loss_memory.measure((4096,), at_once=4096, logits=2**20)
    chunked, whole = rows
    assert chunked["memory_MB"] < whole["memory_MB"] / 2
    assert chunked["loss"] == whole["loss"] and chunked["gradient_norm"] == whole["gradient_norm"]


def test_the_curve_of_accuracy_is_drawn(tmp_path):
    rows = [
        {"recipe": recipe, "train_seconds": 60.0 * n, "pflop": 0.01 * n, "linear_accuracy": 0.5 + n / 100}
        for recipe in ("default", "seed")
        for n in (1, 2)
    ]
    accuracy.draw(rows, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size[0] > 800


def test_a_gpu_is_measured_beside_the_bare_network(tmp_path):
    """In tiny form, on the CPU."""
    rows = gpu.measure("cpu", (8,), 2, 1, side=64, encoder="cnn", compile="none", precision="float32")
    assert [row["what"] for row in rows] == ["CRLF's loop", "bare network"] and rows[1]["of_bare"] == 1
    assert all(row["images_a_second"] > 0 and row["view"] == "24 px" and row["share_of_peak"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["gpu", "speedrun-knn90", "r18-best"])
def test_without_a_gpu_its_measurements_say_so(tmp_path, monkeypatch, capsys, name: str):
    monkeypatch.setattr(bench, "RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([name]) == 2 and not (tmp_path / "records.jsonl").exists()
    assert capsys.readouterr().err.startswith("bench: error: device 'cuda' is not on this machine")


def test_the_plan_counts_a_resnet_18():
    fast, best = plan.table({})
    assert fast["PFLOP"] < 50 and fast["minutes at 25% of the peak"] < 5  # the goals, on paper
    macs = 0.557e9 * (24 / 32) ** 2  # of a CIFAR ResNet-18
    assert fast["GFLOP a view"] == pytest.approx(6 * macs / 1e9, rel=0.01)
    assert best["minutes at 25% of the peak"] < 30


def test_what_a_process_holds():
    before = held.held()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(open(__file__))
        memory = stack.enter_context(mmap.mmap(-1, 80_000_000, flags=PRIVATE))  # not what the allocator has kept
        memory.write(b"1" * len(memory))
        now = held.held()
    assert now.files >= before.files + 5 and now.memory - before.memory > 70_000_000 and now.threads >= 1


def test_a_trend_is_the_slope():
    assert soak.trend([(0, 5), (1, 7), (2, 9)]) == pytest.approx(2)


@pytest.mark.long
def test_short_runs_leave_nothing(tmp_path):
    """A few of them; `python -m bench short-runs` does a thousand."""
    rows = short_runs.measure(8)
    assert [row["runs"] for row in rows] == [2, 4, 6, 8]
    assert rows[-1]["files_in_tmp"] == 0
    assert len({(row["open_files"], row["files_of_a_run"]) for row in rows[1:]}) == 1


def test_the_ablation_gives_means_spreads_and_gains(ablation):
    rows = [
        {"change": name, "linear_%": value, "kNN_%": value - 10, "PFLOP": 0.01}
        for name, value in ((ablation.BASE, 70.0), ("more", 73.0), (ablation.BASE, 71.0), ("more", 75.0))
    ]
    base, more = ablation.summaries(rows)
    assert base["linear_%"] == "70.5 ± 0.7" and base["gain"] == ""
    assert more["gain"] == "+3.5" and more["kNN_%"] == "64.0 ± 1.4"


def test_what_the_ablation_has_done_is_not_done_again(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "DONE", tmp_path / "done.jsonl")
    calls = []
    monkeypatch.setattr(ablation, "trained", lambda name, recipe: calls.append(name) or [{"change": name}])
    recipe = ablation.changes()[ablation.BASE]
    assert [ablation.score("a", recipe) for _ in range(2)] == [[{"change": "a"}]] * 2
    ablation.score("b", recipe)
    assert calls == ["a", "b"]
