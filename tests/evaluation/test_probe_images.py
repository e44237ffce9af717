"""The probes that need the images and the encoder, on a run of seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from gratings import VIEWS, gratings
from terminal import refused

import crlf
from crlf import cli, encoders
from crlf.data import SOURCES
from crlf.data.loader import batch_rows
from crlf.embedding.embed import embed_images
from crlf.encoders import CNN, ENCODERS, Frozen
from crlf.errors import InputError
from crlf.evaluation import augmented, classifier, probe
from crlf.evaluation.augmented import embed_views
from crlf.evaluation.corruptions import CORRUPTIONS
from crlf.evaluation.embedded import Embedded
from crlf.evaluation.finetune import started
from crlf.evaluation.logistic_regression import choose_c, linear
from crlf.evaluation.probe import PROBES, read
from crlf.evaluation.robustness import corrupted_accuracy
from crlf.methods.simclr import SimCLRSettings
from crlf.recipe import Recipe
from crlf.runs.files import save_array
from crlf.runs.run import ENCODER
from crlf.training.state import State

SETS = gratings(512, seed=0), gratings(300, seed=1)


@pytest.fixture(scope="module", autouse=True)
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "gratings", lambda data_dir: SETS)
        patch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
        patch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    recipe = Recipe(
        data="gratings", encoder="tiny", epochs=6, batch_size=64, views=2, augmentation=VIEWS, precision="float32",
        head=SimCLRSettings(hidden=64, projection=32),
    )  # fmt: skip
    made = crlf.pretrain(recipe, out=tmp_path_factory.mktemp("probes") / "ein Lauf ü", device="cpu")
    return crlf.embed(made, device="cpu")


@pytest.fixture
def embedded(run: crlf.Run) -> Embedded:
    return read(run, device="cpu")


def test_what_was_learned_beats_pixels_and_an_untrained_encoder(embedded: Embedded):
    learned = embedded.accuracy(embedded.linear[0].predict(embedded.test))
    scores = PROBES["pixels"](embedded).scores | PROBES["untrained"](embedded).scores
    assert learned > scores["pixels_linear_accuracy"] + 0.2
    assert learned > scores["untrained_linear_accuracy"] + 0.05
    assert PROBES["knn"](embedded).scores["knn_accuracy"] > scores["untrained_knn_accuracy"]


def test_the_untrained_encoder_is_the_one_that_training_began_with(embedded: Embedded, run: crlf.Run):
    """A run whose learning rate is next to nothing keeps it, but for the statistics of batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(embedded.recipe.seed)
        first = encoders.build("tiny", 3, 16, embedded.recipe.embedding.regions)
    encoder = Frozen(first, embedded.recipe.embedding.mirror)
    rows = [embed_images(encoder, part.images, embedded.recipe.normalisation) for part in SETS]
    expected = embedded.accuracy(linear(rows[0], embedded.train_lbl, rows[1]).predictions)
    assert PROBES["untrained"](embedded).scores["untrained_linear_accuracy"] == expected
    torch.manual_seed(0)
    state = State(embedded.recipe, SETS[0], torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), state.method.encoder.parameters(), strict=True))


def test_the_untrained_encoder_has_the_runs_own_seed(embedded: Embedded, monkeypatch):
    """Row for row: accuracies of two encoders may happen to be equal."""
    embedded.__dict__["recipe"] = dataclasses.replace(embedded.recipe, seed=7)
    given: list[np.ndarray] = []
    monkeypatch.setattr("crlf.evaluation.baselines.both", lambda name, images, *rows: given.extend(rows) or {})
    PROBES["untrained"](embedded)
    first = State(embedded.recipe, SETS[0], torch.device("cpu")).method.encoder
    net = encoders.build("tiny", 3, 16, embedded.recipe.embedding.regions)
    net.load_state_dict(first.state_dict())
    encoder = Frozen(net, embedded.recipe.embedding.mirror)
    for rows, part in zip(given, SETS, strict=True):
        np.testing.assert_allclose(rows, embed_images(encoder, part.images, embedded.recipe.normalisation), atol=1e-6)


def test_the_plain_reading_is_the_last_stage_over_the_whole_image(embedded: Embedded, run: crlf.Run):
    net = CNN(3, 1, (8, 16, 32), read=2).eval()
    net.load_state_dict(run.tensors("encoder_simclr.pth"))
    last: list[torch.Tensor] = []
    net.stages[-1].register_forward_hook(lambda module, args, maps: last.append(maps.mean(dim=(2, 3))))
    rows = []
    for part in SETS:
        embed_images(net, part.images, embedded.recipe.normalisation)
        rows.append(torch.cat(last).numpy())
        last.clear()
    scores = PROBES["plain"](embedded).scores
    assert rows[0].shape[1] == 32 and "32 numbers an image" in PROBES["plain"](embedded).protocol
    assert scores["plain_linear_accuracy"] == embedded.accuracy(
        linear(rows[0], embedded.train_lbl, rows[1]).predictions
    )
    other = dataclasses.replace(embedded, train=rows[0], test=rows[1])
    assert scores["plain_knn_accuracy"] == embedded.accuracy(other.voted) != embedded.accuracy(embedded.voted)


def test_pixels_are_the_images(embedded: Embedded):
    flat = [part.images.numpy().reshape(len(part), -1).astype(np.float32) for part in SETS]
    expected = embedded.accuracy(linear(flat[0], embedded.train_lbl, flat[1]).predictions)
    assert PROBES["pixels"](embedded).scores["pixels_linear_accuracy"] == expected


def test_supervision_learns_and_spends_the_runs_budget(embedded: Embedded, run: crlf.Run, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "crlf.evaluation.baselines.batch_rows", lambda step, *rest: steps.append(step) or batch_rows(step, *rest)
    )
    found = PROBES["supervised"](embedded)
    assert len(steps) * 64 * 2 == run.scores["views_seen"]
    assert found.scores["supervised_accuracy"] > 0.6 and "cross-entropy" in found.protocol


def test_shuffled_labels_teach_supervision_nothing(embedded: Embedded):
    shuffled = np.random.default_rng(0).permutation(embedded.train_lbl)
    scores = PROBES["supervised"](dataclasses.replace(embedded, train_lbl=shuffled)).scores
    assert abs(scores["supervised_accuracy"] - 1 / 6) < 0.12


def test_each_epoch_of_supervision_is_a_permutation():
    rows = torch.cat([batch_rows(step, 20, 6, seed=0) for step in range(3)])
    assert len(set(rows.tolist())) == 18
    assert not torch.equal(rows, torch.cat([batch_rows(step, 20, 6, seed=0) for step in range(3, 6)]))


def test_supervision_needs_to_know_the_budget(embedded: Embedded, tmp_path: Path):
    (tmp_path / "recipe.json").write_bytes(embedded.run.file("recipe.json").read_bytes())
    with pytest.raises(InputError, match="supervised needs views_seen"):
        PROBES["supervised"](dataclasses.replace(embedded, run=crlf.Run(tmp_path)))


# Fine-tuning


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crlf.evaluation.finetune.LEAST_STEPS", 30)
    monkeypatch.setattr("crlf.evaluation.finetune.PASSES", 6)


def test_fine_tuning_starts_as_the_linear_probe(embedded: Embedded):
    """Without a step of it, it predicts what the probe does."""
    model, data = started(embedded)
    found = classifier.probabilities(model.eval(), data.test, embedded.recipe.normalisation)
    np.testing.assert_allclose(found, embedded.linear[0].probabilities(embedded.test), atol=1e-3)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.long
def test_fine_tuning_learns_more_than_the_probe_and_leaves_the_run_alone(embedded: Embedded, run: crlf.Run):
    before = run.file(ENCODER).read_bytes()
    rows = embedded.embed(embedded.images[1])
    found = PROBES["fine_tuning"](embedded)
    low, high = found.scores["fine_tuning_interval"]
    assert low <= found.scores["fine_tuning_accuracy"] <= high
    assert found.scores["fine_tuning_accuracy"] > embedded.accuracy(embedded.linear[0].predict(embedded.test)) + 0.05
    assert "for 113 epochs (452 steps of 128), AdamW" in found.protocol and "C = " in found.protocol
    assert run.file(ENCODER).read_bytes() == before
    np.testing.assert_array_equal(embedded.embed(embedded.images[1]), rows)


def test_shuffled_labels_teach_fine_tuning_nothing(embedded: Embedded, short):
    shuffled = np.random.default_rng(0).permutation(embedded.train_lbl)
    scores = PROBES["fine_tuning"](dataclasses.replace(embedded, train_lbl=shuffled)).scores
    assert abs(scores["fine_tuning_accuracy"] - 1 / 6) < 0.12


def test_test_labels_do_not_steer_fine_tuning(embedded: Embedded, short):
    """With other test labels the same images are named the same: right and wrong add up."""
    wrong = dataclasses.replace(embedded, test_lbl=(embedded.test_lbl + 1) % 6)
    right = PROBES["fine_tuning"](embedded).scores["fine_tuning_accuracy"]
    assert PROBES["fine_tuning"](wrong).scores["fine_tuning_accuracy"] <= 1 - right


def test_gaps_in_the_labels_and_a_class_that_nothing_is_learned_of(embedded: Embedded, short):
    """Labels 0, 10, ... 50, and 5 test images of a class 70: those are wrong, and the rest as they were."""
    train, test = 10 * embedded.train_lbl, 10 * embedded.test_lbl
    plain = PROBES["fine_tuning"](embedded)
    spread = PROBES["fine_tuning"](dataclasses.replace(embedded, train_lbl=train, test_lbl=test))
    assert spread == plain
    data = started(embedded)[1]
    unseen = np.concatenate([np.full(5, 70), test[5:]])
    _, odd = started(dataclasses.replace(embedded, train_lbl=train, test_lbl=unseen))
    assert (odd.test_labels[:5] == -1).all() and (odd.test_labels[5:] == embedded.test_lbl[5:]).all()
    assert (odd.train_labels == data.train_labels).all() and odd.classes == ("0", "10", "20", "30", "40", "50")


def test_fine_tuning_is_asked_for_by_name(run: crlf.Run, short):
    assert cli.main(["probe", str(run.path), "--probes", "fine_tuning", "--device", "cpu"]) == 0
    assert run.scores["fine_tuning_accuracy"] > 0.5 and "AdamW" in run.scores["protocol"]["fine_tuning"]


def test_robustness_is_the_linear_probe_on_what_is_saved_corrupted(embedded: Embedded, monkeypatch):
    found = PROBES["robustness"](embedded).scores
    table = found["robustness"]
    assert list(table) == list(CORRUPTIONS) and all(len(row) == 5 for row in table.values())
    assert found["corrupted_accuracy"] == pytest.approx(np.mean([*table.values()]))
    corrupted = torch.from_numpy(CORRUPTIONS["contrast"](SETS[1].images.numpy(), 5).copy())
    rows = embed_images(embedded.encoder, corrupted, embedded.recipe.normalisation)
    assert table["contrast"][4] == embedded.accuracy(embedded.linear[0].predict(rows))
    seen: list[tuple[str, int]] = []
    for name in ("noise", "contrast"):
        monkeypatch.setitem(
            CORRUPTIONS, name, lambda part, strength, name=name: seen.append((name, strength)) or part.copy()
        )
        corrupted_accuracy(embedded, name, 2)
        corrupted_accuracy(embedded, name, 5)
    assert seen == [("noise", 2), ("noise", 5), ("contrast", 2), ("contrast", 5)]
    clean = embedded.accuracy(embedded.linear[0].predict(embedded.test))
    assert table["contrast"][4] < clean and abs(table["jpeg"][0] - clean) < 0.2


def test_views_are_other_crops_of_the_same_images(embedded: Embedded):
    one, two = (embed_views(embedded, VIEWS, i) for i in (0, 1))
    assert one.shape == embedded.train.shape and not np.allclose(one, two)
    np.testing.assert_array_equal(one, embed_views(embedded, VIEWS, 0))
    near = [np.corrcoef(one[i], embedded.train[i])[0, 1] for i in range(50)]
    other = [np.corrcoef(one[i], embedded.train[i + 1])[0, 1] for i in range(50)]
    assert np.mean(near) > np.mean(other)


def test_a_view_of_the_whole_image_changes_nothing(embedded: Embedded, monkeypatch):
    """Three equal copies and a third of C are the same objective as the linear probe's."""
    monkeypatch.setattr("crlf.evaluation.augmented.embed_views", lambda images, settings, i: embedded.train)
    accuracy = PROBES["augmented"](embedded).scores["augmented_accuracy"]
    assert accuracy == pytest.approx(embedded.accuracy(embedded.linear[0].predict(embedded.test)), abs=0.01)
    asked: list[float] = []
    fit = augmented.fit_linear
    monkeypatch.setattr(augmented, "fit_linear", lambda x, y, c, images: asked.append(c * len(x)) or fit(x, y, c))
    PROBES["augmented"](embedded)
    assert asked == pytest.approx([choose_c(embedded.train, embedded.train_lbl)[0] * len(embedded.train)])


def test_augmented_probe(embedded: Embedded):
    found = PROBES["augmented"](embedded)
    low, high = found.scores["augmented_interval"]
    assert 0.5 < low < found.scores["augmented_accuracy"] < high
    assert "60 % of the area" in found.protocol


@pytest.mark.long
def test_the_command_adds_what_is_asked_for(run: crlf.Run):
    assert cli.main(["probe", str(run.path), "--device", "cpu"]) == 0
    before = run.scores
    assert "few_label" not in before
    assert cli.main(["probe", str(run.path), "--probes", "few_label,pixels,clustering", "--device", "cpu"]) == 0
    after = run.scores
    assert {"few_label", "pixels_knn_accuracy", "cluster_nmi"} <= set(after)
    assert after["linear_accuracy"] == before["linear_accuracy"]
    assert {"linear", "knn", "few_label", "pixels", "clustering"} <= set(after["protocol"])
    line = refused("probe", str(run.path), "--probes", "few_lable")
    assert "Did you mean 'few_label'?" in line and "quick" in line


def test_quick_probes_need_neither_images_nor_encoder(run: crlf.Run, monkeypatch):
    def gone(data_dir):
        raise InputError("no source has them")

    monkeypatch.setitem(SOURCES, "gratings", gone)
    weights = run.file(ENCODER).read_bytes()
    run.file(ENCODER).unlink()
    try:
        assert crlf.probe(run)["linear_accuracy"] > 0.5
        for name in ("pixels", "untrained", "robustness", "augmented"):
            with pytest.raises(InputError, match="no source has them"):
                crlf.probe(run, probes=name)
    finally:
        run.file(ENCODER).write_bytes(weights)


def test_other_images_than_were_embedded_are_refused(embedded: Embedded):
    fewer = dataclasses.replace(embedded, test=embedded.test[:-1], test_lbl=embedded.test_lbl[:-1])
    with pytest.raises(InputError, match=r"test_emb.npy must have a row for each of the 300 images, not 299"):
        PROBES["pixels"](fewer)


def test_a_probe_that_fails_leaves_the_scores_as_they_were(run: crlf.Run, monkeypatch):
    before = run.file("scores.json").read_bytes()
    monkeypatch.setitem(PROBES, "retrieval", lambda images: (_ for _ in ()).throw(InputError("no")))
    with pytest.raises(InputError):
        probe.probe(run, probes="linear,retrieval")
    assert run.file("scores.json").read_bytes() == before


def test_names_of_files(run: crlf.Run):
    assert set(PROBES["linear"](read(run)).files) == {"test_pred.npy", "test_prob.npy"}
    save_array(run.file("test_pred.npy"), np.zeros(3))
    crlf.probe(run)
    assert run.array("test_pred.npy").shape == (300,)
