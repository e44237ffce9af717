"""kNN during training: the number is scikit-learn's, the labels reach nothing else, and it costs next to nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gratings import NORMALISATION, VIEWS, gratings
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

import crlf
from crlf.data import SOURCES, ImageSet, load
from crlf.embedding.embed import embed_images
from crlf.encoders import CNN, ENCODERS
from crlf.recipe import Recipe
from crlf.runs.run import claim
from crlf.training import monitor
from crlf.training.knn_curve import KnnCurve, knn_curve
from crlf.training.loop import train
from crlf.training.state import State
from crlf.visualization.report.curves import curves

SETS = gratings(600, seed=0), gratings(64, seed=1)


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "gratings", lambda data_dir: SETS)
        patch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
        patch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crlf.training.knn_curve.KNN_SHARE", float("inf"))  # a look each epoch
        patch.setattr(monitor, "POINTS", 1)  # and no other
        return crlf.pretrain(recipe(epochs=6), out=tmp_path_factory.mktemp("knn") / "run", device="cpu")


def recipe(**other: Any) -> Recipe:
    """Nine steps an epoch."""
    plain = {"data": "gratings", "encoder": "tiny", "batch_size": 64, "views": 2, "epochs": 1, "augmentation": VIEWS}
    plain["normalisation"] = NORMALISATION
    return Recipe(**(plain | other))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CNN(3, 1, (8, 16, 32), read=2)


def curve_of(images: ImageSet = SETS[0], **other: Any) -> KnnCurve | None:
    return knn_curve(recipe(**other), images, "cpu")


def with_labels(labels: Tensor | None, images: Tensor = SETS[0].images) -> ImageSet:
    return ImageSet(images, labels, tuple(map(str, range(6))), [str(i) for i in range(len(images))])


def test_the_number_is_scikit_learns_on_the_sample_embedded_as_it_is():
    """Of ranks r the weights 1 + 2^-r / 1000 decide ties alone, for the class with the nearest member, as CRLF does."""
    curve, encoder = curve_of(), net()
    x = embed_images(encoder.eval(), SETS[0].images, NORMALISATION)[curve.rows]
    y, n = SETS[0].labels.numpy()[curve.rows], curve.voters
    theirs = KNeighborsClassifier(10, metric="cosine", weights=breaking_ties)
    expected = theirs.fit(x[:n], y[:n]).score(x[n:], y[n:])
    assert n == 400 and len(x) == 600
    assert curve.look(encoder.train(), 1.0)["knn_accuracy"] == pytest.approx(expected, abs=0.006)  # an image


def breaking_ties(distances: np.ndarray) -> np.ndarray:
    return np.tile(1 + 1e-3 * 0.5 ** np.arange(distances.shape[1]), (len(distances), 1))


def test_looking_changes_nothing_of_the_encoder():
    curve, encoder = curve_of(), net().train()
    encoder.stages[0].eval()  # a mode that is not its parent's
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    modes, random = [part.training for part in encoder.modules()], torch.random.get_rng_state()
    curve.look(encoder, 1.0)
    assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())
    assert modes == [part.training for part in encoder.modules()]
    assert all(weight.grad is None for weight in encoder.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_those_that_vote_and_those_that_are_asked_about_are_other_images(monkeypatch: pytest.MonkeyPatch):
    """Where they overlapped, random labels would be told right."""
    curve = curve_of()
    assert len(set(curve.rows.tolist())) == 600 and not torch.equal(curve.rows.sort().values, curve.rows)
    noise = torch.randint(6, (600,), generator=torch.Generator().manual_seed(1))
    found = curve_of(with_labels(noise)).look(net(), 1.0)["knn_accuracy"]
    assert abs(found - 1 / 6) < 4 * (5 / 36 / 200) ** 0.5  # standard errors of 200 images
    other = curve_of(seed=1)
    assert not torch.equal(other.rows, curve.rows)
    monkeypatch.setattr("crlf.training.knn_curve.VOTERS", 100), monkeypatch.setattr("crlf.training.knn_curve.ASKED", 50)
    small = curve_of()
    assert small.voters == 100 and len(small.rows) == len(small.labels) == 150
    assert (small.labels == SETS[0].labels[small.rows].numpy()).all()


def test_a_short_run_asks_fewer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.training.knn_curve.FEWEST_VOTERS", 100)
    curve = curve_of()
    rows, labels = curve.rows, curve.labels
    curve.look(net(), 1.0, step=5, progress=0.5)
    assert curve.rows.tolist() == [*rows[:100].tolist(), *rows[400:450].tolist()]
    assert curve.labels.tolist() == [*labels[:100].tolist(), *labels[400:450].tolist()]
    assert "100 training images vote on 50 others" in curve.protocol


def test_each_row_says_what_it_is(run: crlf.Run):
    rows = [row for row in run.log() if "knn_accuracy" in row]
    assert len(rows) == 6 and rows[-1]["knn_accuracy"] > rows[0]["knn_accuracy"] - 0.05
    assert rows[-1]["knn_accuracy"] > 0.5  # chance: 1/6
    said = "kNN during training: 400 training images vote on 200 others (k = 10, cosine); their labels are for this"
    assert all(row["knn_protocol"] == f"{said} evaluation only" for row in rows)


def test_the_report_draws_it_against_epochs_and_seconds(run: crlf.Run):
    section, plots = curves(run)
    first, *_, last = [row["knn_accuracy"] for row in run.log() if "knn_accuracy" in row]
    course = f"kNN accuracy {100 * first:.1f} % at epoch 1, then {100 * last:.1f} % at epoch 6"
    text = section.html.replace("\u00a0%", " %")
    assert f"kNN during training: {course}" in text
    assert "labels are used for this only" in text
    drawn = json.dumps(plots["curve-knn"])
    assert all(f'"{column}"' in drawn for column in ("value", "epochs", "seconds"))
    assert "curve-loss" in plots and "curve-rankme" in plots


def test_it_is_said_before_the_first_number(tmp_path, capsys: pytest.CaptureFixture[str]):
    crlf.pretrain(recipe(), out=tmp_path, device="cpu")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("kNN during training: 400 ") and lines[0].endswith("for this evaluation only")
    assert lines[1].startswith("epoch 1/1  loss ") and "  kNN " in lines[1]


# Where it is silent


def test_what_cannot_be_told_is_not(tmp_path, capsys: pytest.CaptureFixture[str]):
    few = with_labels(SETS[0].labels[:59], SETS[0].images[:59].contiguous())
    assert curve_of(few) is None, "19 images to ask about"
    assert curve_of(with_labels(torch.zeros(600, dtype=torch.int64))) is None, "one class"
    assert curve_of(method="supcon", head=None) is None, "it has learned these labels"
    assert curve_of(with_labels(None)) is None


def test_without_labels_nothing_is_logged_or_said(tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(SOURCES, "gratings", lambda data_dir: (with_labels(None), SETS[1]))
    run = crlf.pretrain(recipe(), out=tmp_path, device="cpu")
    assert not any("knn" in key for row in run.log() for key in row)
    assert "kNN" not in capsys.readouterr().err and "kNN" not in curves(run)[0].html


# Where the labels are


def test_nothing_but_the_curve_is_given_labels(tmp_path, monkeypatch):
    """The method and the encoder get images and nothing else; the loop does without labels but for its evaluation."""
    given: list[Any] = []
    state = State(recipe(), SETS[0], torch.device("cpu"))
    for module in state.method.modules():
        module.register_forward_pre_hook(lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    run = claim(tmp_path, recipe().to_dict(), False, False)
    curve = knn_curve(recipe(), SETS[0], "cpu")
    train(run, recipe(), with_labels(None), state, knn=curve)
    assert any("knn_accuracy" in row for row in run.log())
    tensors = [t for args, kwargs in given for t in itertools.chain(flat(args), flat(kwargs.values()))]
    assert len(tensors) > 50 and all(t.is_floating_point() for t in tensors)


def flat(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            assert isinstance(value, tuple | list), f"a method is given views only, not a {type(value).__name__}"
            yield from flat(value)


# What it costs


def test_no_look_takes_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()  # each look takes a second
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: float(next(clock)))
    curve, encoder = curve_of(), net()
    looks = [1.0, 50.0, 133.0, 134.0, 150.0, 199.0, 200.0]
    assert [seconds for seconds in looks if curve.look(encoder, seconds)] == [1.0, 134.0, 200.0]


def test_the_test_images_are_never_looked_at(tmp_path, monkeypatch):
    """Their labels are wrong by name, and their images are none: the same curve."""
    train_set = load("gratings")[0]
    nothing = ImageSet(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.arange(6), train_set.classes, [*"abcdef"])
    numbers = []
    for name, test in (("as it is", SETS[1]), ("another", nothing)):
        monkeypatch.setitem(SOURCES, "gratings", lambda data_dir, test=test: (train_set, test))
        run = crlf.pretrain(recipe(), out=tmp_path / name, device="cpu")
        numbers.append([row["knn_accuracy"] for row in run.log() if "knn_accuracy" in row])
    assert numbers[0] == numbers[1] != []
