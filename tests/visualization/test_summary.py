"""The last lines on the terminal: each number by its own name, with its own interval."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import fake_run

from crlf.visualization.summary import summary


def test_each_score_has_its_own_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    run.update_scores(linear_accuracy=0.717, linear_interval=[0.701, 0.733], knn_interval=[0.862, 0.889])
    run.update_scores(embed_seconds=3600.0, probe_seconds=1.0, images_per_second=1234.5, pflop=2.5)
    summary(run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "linear probe  71.7 % (70.1 to 73.3 %)",
        "kNN (k = 10)  87.6 % (86.2 to 88.9 %)",
        "chance        12.3 %",
        "trained in    1 min 23 s (1,234 images/s, 2.5 PFLOP)",
        "all stages    1 h 1 min",
    ]
    assert [line.split()[0] for line in lines[5:]] == ["encoder", "embeddings", "report"]


def test_what_was_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    run.file("scores.json").unlink()
    summary(run)
    assert "linear probe  not measured: run `crlf probe`" in capsys.readouterr().out
    run.file("test_lbl.npy").unlink()
    summary(run)
    said = capsys.readouterr().out
    assert "kNN (k = 10)  not measured: the images have no labels" in said and "trained in    not yet" in said
