"""Compare: only what is beyond noise is called so, and only runs of the same test images are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from terminal import refused

import crlf
from crlf import cli
from crlf.evaluation.compare import shown
from crlf.metrics.intervals import interval, paired_interval
from crlf.runs.files import save_array, write_json

M = 600
LABELS = np.arange(M) % 3


def predictions(right: np.ndarray) -> np.ndarray:
    return np.where(right, LABELS, (LABELS + 1) % 3).astype(np.int64)


def make(folder: Path, right: np.ndarray, labels: np.ndarray = LABELS, **recipe) -> crlf.Run:
    folder.mkdir(parents=True)
    write_json(folder / "recipe.json", {"data": "cifar10", "seed": 0} | recipe)
    save_array(folder / "test_lbl.npy", labels)
    save_array(folder / "test_pred.npy", predictions(right)[: len(labels)])
    write_json(folder / "classes.json", ["cat", "dog", "bär"])
    write_json(folder / "test_ids.json", [f"test/{i}" for i in range(len(labels))])
    return crlf.Run(folder)


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).random(M) < 0.7


def test_a_run_is_as_good_as_itself(tmp_path: Path, base: np.ndarray, capsys):
    found = crlf.compare(make(tmp_path / "a", base), make(tmp_path / "b", base, seed=1))
    assert found["runs"][1]["verdict"] == "within noise" and found["runs"][1]["difference"] == 0
    assert {v for row in found["classes"] for v in row["verdicts"]} == {"within noise"}
    assert found["settings"] == [[], [("seed", 0, 1)]]
    assert "seed 0 → 1" in capsys.readouterr().out


def test_a_planted_gain_in_one_class_is_named_and_no_other(tmp_path: Path, base: np.ndarray, capsys):
    better = base | (LABELS == 1)
    found = crlf.compare(make(tmp_path / "a", base), make(tmp_path / "b", better))
    row = found["runs"][1]
    assert row["verdict"] == "better" and row["difference"] == pytest.approx(better.mean() - base.mean())
    assert [c["verdicts"] for c in found["classes"]] == [["within noise"], ["better"], ["within noise"]]
    said = capsys.readouterr().out
    assert "* beyond noise: 1 of 3" in said and "better" in said and "dog" in said and "bär" in said
    worse = crlf.compare(make(tmp_path / "c", better), make(tmp_path / "d", base))
    assert worse["runs"][1]["verdict"] == "worse"


@pytest.mark.parametrize("gained, lost", [(30, 6), (12, 8), (9, 0), (4, 3), (3, 20)])
def test_the_verdict_is_the_sign_tests(tmp_path: Path, gained: int, lost: int):
    """McNemar's exact test counts the same images: those that one run alone gets right."""
    a = np.arange(M) < 300
    b = a.copy()
    b[300 : 300 + gained], b[:lost] = True, False
    found = crlf.compare(make(tmp_path / "a", a), make(tmp_path / "b", b))["runs"][1]
    significant = binomtest(gained, gained + lost).pvalue < 0.05
    assert (found["verdict"] != "within noise") == significant


def test_equal_runs_are_rarely_called_different(tmp_path: Path):
    random = np.random.default_rng(3)
    tested = [make(tmp_path / str(i), random.random(M) < 0.7) for i in range(30)]
    found = crlf.compare(*tested)
    wrong = [row["verdict"] for row in found["runs"][1:]].count("better")
    assert wrong <= 3
    beyond = [v for row in found["classes"] for v in row["verdicts"] if v != "within noise"]
    assert len(beyond) <= 9  # of 87; without Bonferroni each is wrong in one of twenty


def test_classes_share_the_level(tmp_path: Path):
    """A gain that alone would be beyond noise, of 11 images to 3, is not when it is one of three classes'."""
    a = np.arange(M) < 300
    b = a.copy()
    own = np.flatnonzero(LABELS == 1)
    b[own[own >= 300][:11]], b[own[:3]] = True, False
    found = crlf.compare(make(tmp_path / "a", a), make(tmp_path / "b", b))
    assert paired_interval(a[own], b[own])[0] > 0 >= paired_interval(a[own], b[own], 1 - 0.05 / 3)[0]
    assert [row["verdicts"] for row in found["classes"]] == [["within noise"]] * 3


def test_three_runs_are_each_held_against_the_first(tmp_path: Path, base: np.ndarray):
    found = crlf.compare(*(make(tmp_path / name, base & (k != LABELS)) for k, name in enumerate("abc")))
    assert len(found["runs"]) == 3 and all(len(row["differences"]) == 2 for row in found["classes"])
    assert found["classes"][0]["accuracy"] == 0 and found["classes"][0]["verdicts"] == ["better", "better"]


@pytest.mark.parametrize(
    "other, match",
    [
        ({"labels": LABELS[:-1]}, "have 600 of cifar10 and 599 of cifar10"),
        ({"labels": np.roll(LABELS, 1)}, "others, or in another order"),
        ({"data": "svhn"}, "cifar10 and svhn"),
    ],
)
def test_other_test_images_are_refused(tmp_path: Path, base: np.ndarray, other: dict, match: str):
    make(tmp_path / "a", base), make(tmp_path / "ü b", base, **other)
    assert match in refused("compare", str(tmp_path / "a"), str(tmp_path / "ü b"))


def test_other_ids_are_refused(tmp_path: Path, base: np.ndarray):
    a, b = make(tmp_path / "a", base), make(tmp_path / "b", base)
    write_json(b.file("test_ids.json"), ["x"] * M)
    with pytest.raises(crlf.InputError, match="others, or in another order"):
        crlf.compare(a, b)


def test_runs_that_cannot_be_compared(tmp_path: Path, base: np.ndarray):
    a, b = make(tmp_path / "a", base), make(tmp_path / "b", base)
    with pytest.raises(crlf.InputError, match="needs at least two runs"):
        crlf.compare(a)
    save_array(b.file("test_pred.npy"), predictions(base)[:-1])
    with pytest.raises(crlf.InputError, match=r"a prediction for each label \(600,\), not \(599,\)"):
        crlf.compare(a, b)
    b.file("test_pred.npy").unlink()
    with pytest.raises(crlf.InputError, match="`crlf probe"):
        crlf.compare(a, b)
    b.file("test_lbl.npy").unlink()
    save_array(b.file("test_emb.npy"), np.zeros((M, 2), np.float32))
    with pytest.raises(crlf.InputError, match="has no labels, but others have"):
        crlf.compare(a, b)


def photographs(folder: Path, found: int, **recipe) -> crlf.Run:
    """A run of 400 images without labels, of which so many are found by a crop."""
    folder.mkdir(parents=True)
    run = crlf.Run(folder)
    write_json(run.file("recipe.json"), {"data": "/photos", "seed": 0} | recipe)
    save_array(run.file("test_emb.npy"), np.zeros((0, 2), np.float32))
    write_json(run.file("train_ids.json"), [f"{i}.jpg" for i in range(400)])
    write_json(run.file("test_ids.json"), [])
    right = np.arange(400) < found
    run.update_scores(crops_accuracy=found / 400, crops_interval=list(interval(right)), protocol={"crops": "as ever"})
    run.file("log.jsonl").write_text('{"step": 1, "h_rankme": 41.5, "h_alignment": 0.5, "h_uniformity": -2.5}\n')
    return run


def test_runs_without_labels_are_compared_by_crops(tmp_path: Path, capsys):
    a = photographs(tmp_path / "a", 200)
    found = crlf.compare(a, photographs(tmp_path / "b", 212, seed=1), photographs(tmp_path / "c", 280))
    assert [row["verdict"] for row in found["runs"]] == ["within noise", "within noise", "better"]
    low, high = found["runs"][2]["difference_interval"]
    separate = 1.96 * (0.25 / 400 + 0.21 / 400) ** 0.5  # Wald's, which is about the same so far from 0 and 1
    assert (low, high) == (pytest.approx(0.2 - separate, abs=0.002), pytest.approx(0.2 + separate, abs=0.002))
    said = capsys.readouterr().out
    assert (
        "crop finds image" in said and "70.0 %" in said and "41.5" in said and "−2.5" in said and "seed 0 → 1" in said
    )
    save_array(a.file("train_lbl.npy"), LABELS), save_array(a.file("test_lbl.npy"), LABELS)
    assert "has no labels, but others have" in refused("compare", str(tmp_path / "b"), str(tmp_path / "c"), str(a.path))


def test_runs_without_labels_that_cannot_be_compared(tmp_path: Path):
    a, b = photographs(tmp_path / "a", 200), photographs(tmp_path / "b", 200)
    write_json(b.file("train_ids.json"), [f"{i}.png" for i in range(400)])
    assert "must have the same images" in refused("compare", str(a.path), str(b.path))
    write_json(b.file("scores.json"), {})
    assert f"`crlf probe {b.path}` measures the score that is compared" in refused("compare", str(a.path), str(b.path))


def test_the_command_takes_any_number_of_runs(tmp_path: Path, base: np.ndarray, capsys):
    folders = [str(make(tmp_path / name, base).path) for name in ("a", "b", "長い名前" * 20, "d")]
    assert cli.main(["compare", *folders]) == 0
    said = capsys.readouterr().out
    assert all(folder in said for folder in folders)
    assert "4 against 1" in said


def test_names_do_not_move_the_cursor():
    assert shown("ü ä") == "ü ä" and "\x1b" not in shown("a\x1b[31m") and "\n" not in shown("a\nb")
