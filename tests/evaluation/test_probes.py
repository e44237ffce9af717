"""The probes against scikit-learn, a naive loop and planted leaks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import crlf
from crlf.errors import InputError
from crlf.evaluation.embedded import Embedded
from crlf.evaluation.labelled import chance
from crlf.evaluation.logistic_regression import (
    FEW_STRENGTHS,
    STRENGTHS,
    choose_c,
    fit_linear,
    folds_of_few,
    held_out,
    pose,
    standardise,
)
from crlf.evaluation.probe import PROBES, QUICK, chosen
from crlf.metrics import cosine
from crlf.metrics.cosine import chunk_rows
from crlf.metrics.knn import knn_predict
from crlf.runs.files import save_array, write_json


def blobs(
    n: int, classes: int = 5, width: int = 24, spread: float = 2.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters with correlated features of unlike scales, as embeddings have: about 85 % can be told."""
    fixed = np.random.default_rng(99)
    centres, mix = fixed.normal(size=(classes, width)), fixed.normal(size=(width, width)) / np.sqrt(width)
    scales = fixed.uniform(0.1, 5, size=width)
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    x = (centres[y] * 2 + spread * random.normal(size=(n, width))) @ mix * scales + 3
    return x.astype(np.float32), y.astype(np.int64)


TRAIN, TEST = blobs(1500), blobs(1000, seed=1)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_linear_probe_equals_scikit_learn(c: float):
    (x, y), (x_test, y_test) = TRAIN, TEST
    features, mean, scale = (t.numpy() for t in standardise(torch.from_numpy(x)))
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(features.astype(np.float64), y)
    ours = fit_linear(x, y, c)
    their_accuracy = theirs.score((x_test - mean) / scale, y_test)
    assert abs((ours.predict(x_test) == y_test).mean() - their_accuracy) <= 0.002
    np.testing.assert_allclose(ours.weights.numpy(), theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max() + 1e-5)
    probabilities = ours.logits(x_test).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba((x_test - mean) / scale), atol=3e-3)


def test_two_classes_and_labels_with_gaps():
    x, y = TRAIN
    pair = y < 2
    labels = np.where(y[pair] == 0, 3, 70)
    model = fit_linear(x[pair], labels, 0.01)
    assert set(model.predict(x[pair])) == {3, 70}
    assert (model.predict(x[pair]) == labels).mean() > 0.9
    assert (knn_predict(x[pair], labels, x[pair], k=5) == labels).mean() > 0.9


def test_constant_features_do_no_harm():
    x, y = TRAIN
    padded = np.concatenate([x, np.full((len(x), 2), 7, np.float32)], axis=1)
    assert (fit_linear(padded, y, 0.01).predict(padded) == fit_linear(x, y, 0.01).predict(x)).mean() > 0.999


def test_the_choice_of_c_is_made_on_held_out_training_images():
    x, y = TRAIN
    held, kept = held_out(y)
    assert set(held).isdisjoint(kept) and len(held) + len(kept) == len(y)
    assert np.allclose(np.bincount(y[held]) / np.bincount(y), 0.1, atol=0.01)  # of each class
    assert "held-out training images" in choose_c(x, y).how


def test_the_choice_of_c_is_scikit_learns_without_the_held_out_images(monkeypatch: pytest.MonkeyPatch):
    """Many features of noise: where an image is among the fitted ones it is told right, and any C looks perfect."""
    monkeypatch.setattr("crlf.evaluation.logistic_regression.FEW", 20)
    x, y = TRAIN
    random = np.random.default_rng(0)
    noisy = np.concatenate([x[:300], random.normal(size=(300, 400)).astype(np.float32)], axis=1)
    held, kept = held_out(y[:300])
    accuracies = []
    for strength in STRENGTHS:
        features, mean, scale = (t.numpy().astype(np.float64) for t in standardise(torch.from_numpy(noisy[kept])))
        theirs = LogisticRegression(C=1 / (strength * len(kept)), tol=1e-6, max_iter=5000).fit(features, y[kept])
        accuracies.append(theirs.score((noisy[held] - mean) / scale, y[held]))
        best = int(np.argmax(accuracies))
        if len(accuracies) == best + 3:
            break
    assert 0.3 < accuracies[best] < 0.9, "neither chance nor what was learned by heart"
    c, how, _ = choose_c(noisy, y[:300])
    assert c == pytest.approx(1 / (STRENGTHS[best] * len(kept)))
    assert f"on {len(held)} held-out training images ({100 * accuracies[best]:.1f} %)" in how


def test_noise_asks_for_a_stronger_penalty_than_signal():
    x, y = TRAIN
    random = np.random.default_rng(0)
    noise = np.concatenate([x[:1200], random.normal(size=(1200, 400)).astype(np.float32)], axis=1)
    assert choose_c(noise, y[:1200])[0] * 1200 < choose_c(x, y)[0] * 1500


def test_few_images_have_one_scale_and_a_feature_that_hardly_varies_by_chance_does_not_rule():
    """With a label a class, a tiny feature would be blown up to the size of the one that tells the classes."""
    y = np.arange(3)
    x = np.array([[0, 0.0], [10, 0.001], [20, -0.001]], dtype=np.float32)
    model = fit_linear(x, y, choose_c(x, y).c)
    assert choose_c(x, y).c == 1 / 2 and "there is one image of each class" in choose_c(x, y).how
    assert model.scale[0] == model.scale[1] == pytest.approx(math.sqrt(x.var(axis=0).mean()))
    far = np.array([[0, 0.02], [20, 0.02], [0, -0.02], [20, -0.02]], dtype=np.float32)  # noise 20 times as large
    assert model.predict(far).tolist() == [0, 2, 0, 2]
    many, labels = np.tile(x, (100, 1)), np.tile(y, 100)
    assert fit_linear(many, labels, 1.0).scale.numpy() == pytest.approx(x.std(axis=0), rel=1e-5)  # a scale for each
    parts, whole = pose(many[:200], labels[:200], 300), pose(many[:200], labels[:200])
    assert parts.scale[0] != parts.scale[1] and whole.scale[0] == whole.scale[1]  # a fold of many has their scales


def test_few_labels_are_told_with_the_confidence_that_they_deserve():
    """Held-out log loss decides, not accuracy on a handful of images: scikit-learn's choice over the same folds."""
    random = np.random.default_rng(3)
    y = np.arange(50) % 5
    centres = random.normal(size=(5, 300))
    x, more = (
        (0.1 * centres[k] + random.normal(size=(len(k), 300))).astype(np.float32) for k in (y, np.arange(500) % 5)
    )
    folds, losses = folds_of_few(y), []
    assert [np.bincount(y[folds == k], minlength=5).tolist() for k in range(5)] == [[2] * 5] * 5
    for strength in FEW_STRENGTHS:
        total = 0.0
        for k in range(5):
            kept, held = folds != k, folds == k
            features, mean, scale = (
                t.numpy().astype(np.float64) for t in standardise(torch.from_numpy(x[kept]), one_scale=True)
            )
            theirs = LogisticRegression(C=1 / (strength * kept.sum()), tol=1e-8, max_iter=5000).fit(features, y[kept])
            total -= theirs.predict_log_proba((x[held] - mean) / scale)[np.arange(10), y[held]].sum()
        losses.append(total)
    choice = choose_c(x, y)
    assert choice.c == pytest.approx(1 / (FEW_STRENGTHS[int(np.argmin(losses))] * 40))
    assert "log loss of 50 training images, held out in 5 parts" in choice.how
    found, weak = (fit_linear(x, y, c).probabilities(more) for c in (choice.c, 1 / (1e-3 * 50)))
    right, weakly = (rows.argmax(axis=1) == np.arange(500) % 5 for rows in (found, weak))
    assert weak.max(axis=1).mean() - weakly.mean() > 0.2  # as it was: sure, and often wrong
    assert abs(found.max(axis=1).mean() - right.mean()) < 0.12 and right.mean() > weakly.mean() - 0.02


def test_the_only_image_of_a_class_is_never_held_out():
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    y = np.array([*range(3)] * 9 + [3, 4, 5])
    assert (folds_of_few(y)[-3:] == -1).all() and set(folds_of_few(y)[:-3]) == set(range(5))
    assert "log loss of 27 training images" in choose_c(x, y).how
    alone = choose_c(x[:4], np.arange(4))
    assert alone.how.endswith("there is one image of each class") and alone.c == pytest.approx(1 / 6)


def embedded(labels: np.ndarray = TRAIN[1], count: int = 1500) -> Embedded:
    return Embedded(TRAIN[0][:count], labels[:count], *TEST)


FITTED = ("linear", "knn")  # probes whose accuracy is NAME_accuracy, of the embeddings alone


@pytest.mark.parametrize("name", FITTED)
def test_a_probe_beats_chance(name: str):
    found = PROBES[name](embedded())
    assert found.scores[f"{name}_accuracy"] > 0.7
    assert "1,500 training images" in found.protocol


@pytest.mark.parametrize("name", FITTED)
def test_shuffled_labels_give_chance(name: str):
    shuffled = np.random.default_rng(0).permutation(TRAIN[1])
    assert abs(PROBES[name](embedded(shuffled)).scores[f"{name}_accuracy"] - 0.2) < 0.08


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("count", [2, 7, 30])
def test_few_images(name: str, count: int):
    labels = np.arange(count) % 2
    assert 0 < PROBES[name](embedded(labels, count)).scores[f"{name}_accuracy"] < 0.6  # of five classes it knows two


def test_fewer_images_than_features_are_fitted_in_what_they_span():
    """The same optimum as scikit-learn's in all directions: the penalty keeps the weights among the images."""
    x, y = np.random.default_rng(0).normal(size=(20, 60)).astype(np.float32) * 3 + 1, np.arange(20) % 3
    assert pose(x, y).covariance.shape == (20, 20)
    features = standardise(torch.from_numpy(x), one_scale=True)[0].double().numpy()
    theirs = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000).fit(features, y)
    np.testing.assert_allclose(fit_linear(x, y, 0.1).weights.numpy(), theirs.coef_, atol=1e-3)


def naive_knn(x: np.ndarray, y: np.ndarray, query: np.ndarray, k: int) -> int:
    similarity = [float(a @ query / np.linalg.norm(a) / np.linalg.norm(query)) for a in x.astype(np.float64)]
    nearest = [int(y[i]) for i in np.argsort(similarity)[::-1][:k]]
    votes = {label: nearest.count(label) for label in nearest}  # in order of nearness
    return max(votes, key=lambda label: votes[label])  # max keeps the first of equals


@pytest.mark.parametrize("k", [1, 2, 10])
def test_knn_equals_a_naive_loop(k: int):
    x, y = TRAIN
    expected = [naive_knn(x, y, query, k) for query in TEST[0][:60]]
    assert knn_predict(x, y, TEST[0][:60], k).tolist() == expected


def test_knn_equals_scikit_learn_where_no_vote_is_tied():
    (x, y), (x_test, _) = TRAIN, TEST
    theirs = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(x, y)
    votes = np.sort(theirs.predict_proba(x_test), axis=1)
    tied = votes[:, -1] == votes[:, -2]
    agree = knn_predict(x, y, x_test, 10) == theirs.predict(x_test)
    assert agree[~tied].all()
    assert 0 < tied.mean() < 0.2  # where the rules differ: nearest here, smallest label there
    assert f"ties, {100 * tied.mean():.1f} % of the test images" in PROBES["knn"](embedded()).protocol


def test_the_tie_goes_to_the_nearest():
    train = np.array([[1, 0.1], [1, 0.3], [1, 0.5], [1, 0.7]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    assert knn_predict(train, np.array([5, 2, 2, 5]), query, k=4).tolist() == [5]
    assert knn_predict(train, np.array([2, 5, 5, 2]), query, k=4).tolist() == [2]
    assert knn_predict(train, np.array([5, 2, 2, 2]), query, k=4).tolist() == [2]  # no tie


def test_chunks_do_not_change_the_result_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch):
    whole = knn_predict(*TRAIN, TEST[0])
    monkeypatch.setattr(cosine, "CHUNK_BYTES", 4 * 1500 * 7)
    assert chunk_rows(1500) == 7
    assert (knn_predict(*TRAIN, TEST[0]) == whole).all()
    monkeypatch.undo()
    assert chunk_rows(50_000) * 50_000 * 4 <= 2**28 and chunk_rows(10**9) == 1


def test_k_larger_than_the_training_set():
    with pytest.raises(InputError, match=r"k must be in 1\.\.1500, the number of training images, not 1501"):
        knn_predict(*TRAIN, TEST[0], k=1501)


@pytest.fixture
def run(tmp_path: Path) -> crlf.Run:
    write_json(tmp_path / "recipe.json", {})
    made = crlf.Run(tmp_path)
    for split, (x, y) in (("train", TRAIN), ("test", TEST)):
        save_array(made.file(f"{split}_emb.npy"), x)
        save_array(made.file(f"{split}_lbl.npy"), y)
    return made


def test_probe_writes_scores_with_their_protocols_and_the_predictions(run: crlf.Run):
    run.update_scores(epochs=3)
    scores = crlf.probe(run)
    predictions = run.array("test_pred.npy")
    assert predictions.dtype == np.int64
    assert scores["linear_accuracy"] == (predictions == TEST[1]).mean()
    probabilities = run.array("test_prob.npy")
    assert probabilities.dtype == np.float32 and (probabilities.argmax(axis=1) == predictions).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert scores["linear_accuracy"] > 0.7 and scores["knn_accuracy"] > 0.7
    assert scores["chance"] == (TEST[1] == np.bincount(TRAIN[1]).argmax()).mean()
    assert set(scores["protocol"]) == set(QUICK) and scores["epochs"] == 3
    assert "C = " in scores["protocol"]["linear"] and "k = 10" in scores["protocol"]["knn"]
    assert run.scores == scores


def test_chance_is_what_the_training_labels_alone_would_say():
    """Where the most frequent test class is another one, it must not be known."""
    train, test = np.array([3, 3, 3, 5, 5]), np.array([5, 5, 5, 3])
    assert chance(train, test) == 0.25 and chance(test, train) == 0.4


def test_test_labels_play_no_part_in_the_predictions(run: crlf.Run):
    crlf.probe(run)
    before = run.file("test_pred.npy").read_bytes()
    save_array(run.file("test_lbl.npy"), np.roll(TEST[1], 1))
    shifted = crlf.probe(run)
    assert run.file("test_pred.npy").read_bytes() == before
    assert shifted["linear_accuracy"] < 0.35  # labels shifted by one row are noticed


@pytest.mark.parametrize(
    "asked, expected",
    [
        ("quick", [*QUICK]),
        ("all", [name for name in PROBES if name not in ("supervised", "fine_tuning")]),
        ("few_label, linear", ["linear", "few_label"]),
        ("quick,supervised", [*QUICK, "supervised"]),
    ],
)
def test_probes_are_asked_for_by_name(asked: str, expected: list[str]):
    assert chosen(asked) == expected


@pytest.mark.parametrize(
    "asked, match", [("lienar", "Did you mean 'linear'"), ("knn,x", "probe 'x'"), (",", "not ','")]
)
def test_probes_that_there_are_not(run: crlf.Run, asked: str, match: str):
    with pytest.raises(InputError, match=match) as caught:
        crlf.probe(run, probes=asked)
    assert "\n" not in str(caught.value) and not run.scores


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("train_lbl.npy", TRAIN[1][:-1], r"train_lbl.npy must be int64 \(1500,\)"),
        ("train_lbl.npy", TRAIN[1] * 0, "two classes or more, not 1"),
        ("train_lbl.npy", TRAIN[1].astype(np.float32), "must be int64"),
        ("test_lbl.npy", np.where(np.arange(1000) == 7, -1, TEST[1]), "0 or more, but row 7 is -1"),
        ("train_emb.npy", TRAIN[0].astype(np.float64), "must be float32"),
        ("test_emb.npy", TEST[0][:, :-1].copy(), "24 columns, but test_emb.npy has 23"),
        ("test_emb.npy", np.where(np.arange(1000)[:, None] == 4, np.float32("nan"), TEST[0]), "row 4 is not"),
        ("test_emb.npy", None, "`crlf embed"),
    ],
)
def test_embeddings_that_do_not_fit(run: crlf.Run, name: str, value, match: str):
    if value is None:
        run.file(name).unlink()
    else:
        save_array(run.file(name), value)
    with pytest.raises(InputError, match=match) as caught:
        crlf.probe(run)
    assert "\n" not in str(caught.value) and not run.file("test_pred.npy").exists()


def test_a_damaged_array_and_one_that_would_run_code(run: crlf.Run):
    whole = run.file("train_emb.npy").read_bytes()
    run.file("train_emb.npy").write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"train_emb.npy' cannot be read as an array"):
        crlf.probe(run)
    np.save(run.file("train_emb.npy"), np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match=r"train_emb.npy' cannot be read as an array"):
        crlf.probe(run)
