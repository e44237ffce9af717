"""The leaderboard: runs are measured again, those that do not belong there are refused, rows find their place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import crlf
from bench import __main__ as bench
from bench import entry, leaderboard
from bench.published import PUBLISHED
from crlf.encoders import InitSettings
from crlf.errors import InputError
from crlf.recipe import RECIPES
from crlf.runs.run import RECIPE, SCORES

SHORT = crlf.Recipe(data="shapes", epochs=1, views=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[crlf.Run]:
    """Two seeds, trained; the second has scores that it does not deserve, and embeddings of another encoder."""
    folder = tmp_path_factory.mktemp("runs")
    made = [crlf.pretrain(dataclasses.replace(SHORT, seed=seed), out=folder / str(seed)) for seed in (0, 1)]
    crlf.embed(made[1])
    np.save(made[1].file("test_emb.npy"), np.load(made[1].file("test_emb.npy"))[::-1])
    made[1].update_scores(linear_accuracy=1.0, knn_accuracy=1.0)
    return made


def changed(run: crlf.Run, folder: Path, **settings: object) -> crlf.Run:
    """A folder with the run's scores and a recipe that differs."""
    recipe = {**json.loads(run.file(RECIPE).read_text()), **settings}
    folder.mkdir()
    (folder / RECIPE).write_text(json.dumps(recipe))
    (folder / SCORES).write_text(run.file(SCORES).read_text())
    return crlf.Run(folder)


def test_runs_are_measured_again_and_added(runs, tmp_path, monkeypatch, capsys):
    records = tmp_path / "records.jsonl"
    monkeypatch.setattr(entry, "DATA", "shapes")
    monkeypatch.setattr(bench, "RECORDS", records)
    monkeypatch.setattr("bench.readme.write", lambda _: None)
    assert bench.main(["leaderboard", *(str(run.path) for run in runs), "--who", "a <tester>", "--device", "cpu"]) == 0
    [row] = json.loads(records.read_text())["rows"]
    assert row["seeds"] == [0, 1] and row["who"] == "a <tester>"
    assert all(0.2 < accuracy < 1 for key in leaderboard.FIGURES.values() for accuracy in row[key])  # not the false 1.0
    assert row["linear_accuracy"] != row["plain_linear_accuracy"]
    assert row["linear_accuracy"][1] == crlf.probe(runs[1], probes="linear")["linear_accuracy"]
    table = leaderboard.table(records)
    mean = 100 * np.mean(row["linear_accuracy"])
    [line] = [line for line in table.splitlines() if "tester" in line]
    assert f"| {mean:.1f} ± " in line and "| 2 |" in line and "<tester>" not in line and "**SimCLR, light CNN**" in line
    assert "a <tester>" in capsys.readouterr().out


def test_runs_that_do_not_belong_are_refused(runs, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="all training images of 'cifar10', not from 'shapes'"):
        entry.require_alike(runs)
    monkeypatch.setattr(entry, "DATA", "shapes")
    assert entry.require_alike(runs) == runs[0].recipe
    first = runs[0]
    with pytest.raises(InputError, match="different seeds, not 0, 0"):
        entry.require_alike([first, first])
    other = changed(first, tmp_path / "longer", epochs=2, seed=3)
    with pytest.raises(InputError, match="apart from the seed"):
        entry.require_alike([first, other])
    for name, settings, message in (
        ("few", {"subset": 100}, "not from the first 100 images of 'shapes'"),
        ("taught", {"method": "supcon"}, "must have learned without labels, but 'supcon' uses them"),
        ("begun", {"start": dataclasses.asdict(InitSettings(init="x.pth", head_first=0.1))}, "not from 'x.pth'"),
    ):
        recipe = {**settings, **({"head": {}} if "method" in settings else {})}
        with pytest.raises(InputError, match=message):
            entry.require_alike([changed(first, tmp_path / name, **recipe)])
    first_scores = json.loads(first.file(SCORES).read_text())
    bare = changed(first, tmp_path / "bare")
    bare.file(SCORES).write_text(json.dumps({k: v for k, v in first_scores.items() if k != "pflop"}))
    with pytest.raises(InputError, match="is not trained"):
        entry.require_alike([bare])


def test_rows_stand_in_order_of_their_operations_and_invalid_ones_last():
    rows, _, protocols = leaderboard.table(bench.RECORDS).partition("\n\nProtocols:\n\n")
    lines = rows.splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(leaderboard.COLUMNS) for row in cells)
    place = leaderboard.COLUMNS.index("PFLOP")
    counted = [float(row[place].removeprefix("about ")) for row in cells if row[place]]
    assert counted == sorted(counted) and len(counted) > 10
    invalid = ["Invalid" in row[0] for row in cells]
    numbers = [int(row[-1].rpartition("(")[2].rstrip(")")) for row in cells]
    assert set(numbers) == set(range(1, 1 + len(protocols.splitlines())))
    bad = [protocols.splitlines()[number - 1].count("Invalid") for number in numbers]
    assert bad == [int(row) for row in invalid]
    assert invalid == sorted(invalid) and sum(invalid) == sum(bool(row.invalid) for row in PUBLISHED) > 3


def test_a_published_row_names_its_source_and_a_figure():
    for row in PUBLISHED:
        assert row.figures and set(row.figures) <= set(leaderboard.FIGURES), row
        assert row.source.startswith("https://") or row.encoder == "light CNN"
        assert not row.like or row.like in RECIPES
