"""A tracker gets every number of the log, on this machine, and changes no bit of the training."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from terminal import refused

import crlf
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOSS, RECIPE, Run, claim
from crlf.training import trackers

TINY = Recipe(data="shapes", subset=128, batch_size=64, views=2, epochs=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without a tracker."""
    return crlf.pretrain(TINY, out=tmp_path_factory.mktemp("plain") / "run", device="cpu")


def logged(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What log.jsonl holds, as a tracker should: by name, (step, value)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in run.log():
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, []).append((row["step"], float(value)))
    return found


def in_tensorboard(run: Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.file("tensorboard"))).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_log_and_the_training_is_the_same_bits(plain: Run, tmp_path: Path):
    run = crlf.pretrain(TINY, out=tmp_path / "ü run", device="cpu", track="tensorboard")
    found, expected = in_tensorboard(run), logged(run)
    assert set(found) == set(expected) and {"loss", "lr", "seconds", "epoch"} <= set(found)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)  # TensorBoard keeps float32
    for name in (LOSS, ENCODER, RECIPE):
        assert run.file(name).read_bytes() == plain.file(name).read_bytes(), name


def rows(run: Run, *steps: int) -> list[dict]:
    return [{"step": step, "loss": 1 / step, "seconds": float(step), "collapse": None, "on": "x"} for step in steps]


def empty(folder: Path) -> Run:
    return claim(folder, TINY.to_dict(), resume=False, overwrite=False)


def test_a_resumed_run_goes_on_in_tensorboard(tmp_path: Path):
    run = empty(tmp_path / "run")
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # killed after step 3, with a checkpoint of step 2
        with trackers.tracked("tensorboard", run, done) as send:
            for row in rows(run, *steps):
                send(row)
    found = in_tensorboard(run)
    np.testing.assert_allclose(found["loss"], [(1, 1), (2, 0.5), (3, 1 / 3), (4, 0.25)], rtol=1e-6)
    assert set(found) == {"loss", "seconds"}


def test_mlflow_holds_the_log_in_a_local_file_and_a_resumed_run_goes_on(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = empty(tmp_path / "ü run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, within MLflow
        for done, steps in ((0, (1, 2)), (2, (3,))):
            with trackers.tracked("mlflow", run, done) as send:
                for row in rows(run, *steps):
                    send(row)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{run.file('mlflow') / 'mlflow.db'}")
        (found,) = client.search_runs([client.get_experiment_by_name("crlf").experiment_id])
        history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert found.data.params["optim.lr"] == str(TINY.optim.lr) and found.data.params["data"] == "shapes"
    assert found.info.status == "FINISHED" and found.info.run_name == "ü run"
    assert set(found.data.metrics) == {"loss", "seconds"}


class FakeWandb:
    """What tracking calls of the module wandb, and what it was told."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict, int]] = []
        self.finished = 0

    def init(self, **settings: object) -> FakeWandb:
        self.settings = settings
        return self

    def log(self, row: dict, step: int) -> None:
        self.rows.append((row, step))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_is_offline_unless_its_own_variable_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against a fake: the library starts a service of its own, which takes seconds."""
    run = empty(tmp_path / "run")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    seen = []
    for mode in (None, "online"):
        monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
        monkeypatch.setattr(trackers, "require", lambda *words: None)
        if mode:
            monkeypatch.setenv("WANDB_MODE", mode)
        with trackers.tracked("wandb", run, 0) as send:
            send(rows(run, 2)[0])
        assert fake.rows == [({"loss": 0.5, "seconds": 2.0}, 2)] and fake.finished == 1
        seen.append(fake.settings)
    assert [settings["mode"] for settings in seen] == ["offline", "online"]
    assert seen[0]["id"] == seen[1]["id"] and seen[0]["resume"] == "allow"
    assert seen[0]["dir"] == str(run.path) and seen[0]["config"] == run.settings


@pytest.mark.parametrize("tracker", [name for name in trackers.TRACKERS if name != "none"])
def test_without_the_library(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    arguments = ["pretrain", "--data", "shapes", "--out", str(tmp_path / "run"), "--track", tracker]
    line = f"crlf pretrain: error: --track {tracker} needs {tracker}: pip install 'crlf[{tracker}]'"
    assert refused(*arguments) == line and not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = empty(tmp_path / "run")
    run.file("tensorboard").touch()  # where its folder should be
    with pytest.raises(crlf.InputError, match=r"^--track tensorboard cannot start: "):
        trackers.tracked("tensorboard", run, 0).__enter__()
