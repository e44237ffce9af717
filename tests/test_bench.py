"""The measurements: every name has a module, a record tells its circumstances, speeds are compared in turn."""

from __future__ import annotations

import importlib
import json

import pytest

from bench import __main__ as bench
from bench.timing import in_turn, median_ratio


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
        assert record["bench"] in bench.BENCHES and record["rows"] and record["commit"]


@pytest.mark.parametrize("path", bench.readme.pages(bench.RECORDS), ids=lambda path: path.name)
def test_the_pages_say_what_the_records_say(path):
    assert path.read_text(encoding="utf-8") == bench.readme.pages(bench.RECORDS)[path], "python -m bench readme"
