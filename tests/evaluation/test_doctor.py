"""The doctor: each planted fault is found, by name and with its numbers; sound runs are told to be sound."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gratings import VIEWS, gratings, moderate

import crlf
from crlf import cli
from crlf.augmentation import ViewSettings
from crlf.data import SOURCES, ImageSet
from crlf.data.datasets import shapes
from crlf.encoders import CNN, ENCODERS
from crlf.errors import InputError
from crlf.evaluation.doctor.checks import CHECKS
from crlf.evaluation.doctor.images import best_shift, correlation, ridge
from crlf.evaluation.doctor.settings import places_left
from crlf.evaluation.doctor.training import extrapolate, statistics
from crlf.methods.simclr import SimCLRSettings
from crlf.optim import OptimSettings
from crlf.recipe import RECIPES, Recipe
from crlf.runs.files import save_array, save_tensors, write_json
from crlf.runs.run import ENCODER

TRAIN, TEST = gratings(768, seed=0), gratings(300, seed=1)
HEAD = SimCLRSettings(hidden=64, projection=32)
SOUND = {"data": "gratings", "encoder": "tiny", "epochs": 12, "batch_size": 64, "views": 2, "augmentation": VIEWS}
SOUND |= {"head": HEAD}
COLOURED = SOUND | {"data": "shapes", "subset": 512, "epochs": 8, "augmentation": ViewSettings()}


@pytest.fixture(scope="module", autouse=True)
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "gratings", lambda data_dir: (TRAIN, TEST))
        patch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
        patch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
        yield


def made(settings: dict, folder: Path) -> crlf.Run:
    run = crlf.pretrain(Recipe(**settings), out=folder, device="cpu")
    crlf.embed(run, device="cpu")
    crlf.probe(run, probes="linear,calibration,knn,untrained")  # the nearest gratings by their pixels are of its class
    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    return made(SOUND, tmp_path_factory.mktemp("doctor") / "sound")


@pytest.fixture
def copy(sound: crlf.Run, tmp_path: Path) -> crlf.Run:
    """The sound run, to spoil."""
    return crlf.Run(shutil.copytree(sound.path, tmp_path / "copy"))


def found(run: crlf.Run) -> dict[str, str]:
    """The evidence of each finding."""
    return {finding.name: finding.evidence for finding in crlf.doctor(run)}


def test_a_sound_run_gets_none(sound: crlf.Run, capsys):
    assert found(sound) == {}
    assert capsys.readouterr().out == f"nothing found in {len(CHECKS)} checks\n"
    assert sound.scores["linear_accuracy"] > 0.6  # of six classes


@pytest.mark.long
@pytest.mark.parametrize("method", ["byol", "vicreg"])
def test_sound_runs_of_other_methods_get_none(tmp_path: Path, method: str):
    settings = SOUND | {"epochs": 20, "method": method, "head": moderate(method, hidden=64)}
    assert found(made(settings, tmp_path / "run")) == {}


# Faults that are trained in

TRAINED: dict[str, tuple[dict, str]] = {
    "temperature": ({"head": dataclasses.replace(HEAD, temperature=5.0)}, "0.04 to 0.7"),
    "learning_rate": ({"optim": OptimSettings(lr=1e-6, vector_lr=1e-7)}, "1e-06"),
    "weak_augmentation": ({"augmentation": ViewSettings(crop_min=0.9, jitter=0.0, grayscale=0.0)}, "above 0.7"),
    "strong_augmentation": (
        {"augmentation": ViewSettings(crop_min=0.01, brightness=1.0, contrast=1.0, hue=0.5)},
        "below 0.4",
    ),
    "blur": ({"augmentation": ViewSettings(blur=0.5)}, "50 % of them"),
    "too_few_epochs": ({"epochs": 4}, "after 8"),
    "batch_norm": ({"epochs": 1}, "from 8 steps"),
}
BESIDE = {
    "too_few_epochs",
    "batch_norm",
    "loss",
    "worth",
    "short_training",
}  # what may follow from another fault, and from so short a run


@pytest.mark.long
@pytest.mark.parametrize("fault", TRAINED)
def test_a_fault_in_the_recipe_is_found(tmp_path: Path, fault: str, capsys):
    changes, evidence = TRAINED[fault]
    run = made(COLOURED | changes, tmp_path / "run")
    findings = found(run)
    assert evidence in findings.pop(fault)
    assert set(findings) <= BESIDE
    assert "try: " in capsys.readouterr().out


@pytest.mark.parametrize("lr, optimizer, word", [(5.0, "muon", "high"), (0.3, "adam", "high"), (1e-4, "sgd", "low")])
def test_a_learning_rate_is_judged_by_its_optimizer(copy: crlf.Run, lr: float, optimizer: str, word: str):
    edit(copy, optim=dataclasses.asdict(OptimSettings(lr=lr, optimizer=optimizer)))
    finding = next(f for f in crlf.doctor(copy) if f.name == "learning_rate")
    assert f"is {word} for {optimizer}" in finding.what and "the loss went from" in finding.evidence


def test_a_learning_rate_is_judged_with_the_batch(copy: crlf.Run):
    edit(copy, batch_size=64, optim=dataclasses.asdict(OptimSettings(lr=16.0, optimizer="sgd")))
    assert "4 (16 × 64 / 256)" in found(copy)["learning_rate"]


@pytest.mark.parametrize("name", RECIPES)
def test_no_named_recipe_is_accused_of_its_settings(copy: crlf.Run, name: str):
    recipe = RECIPES[name]
    edit(copy, **recipe.to_dict())
    views = np.zeros((1, 3, 3, 24, 24), np.uint8)
    save_array(copy.file("views.npy"), views)
    names = ("learning_rate", "temperature", "stem", *(("blur",) if name != "seed" else ()))
    from crlf.evaluation.doctor.case import Case

    assert [CHECKS[check](Case(copy)) for check in names] == [None] * len(names)


# Faults that are written in


def edit(run: crlf.Run, **values) -> None:
    write_json(run.file("recipe.json"), run.settings | values)


def images(base: ImageSet, **values) -> ImageSet:
    return dataclasses.replace(base, **values)


def shift_train(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    save_array(run.file("train_lbl.npy"), np.roll(run.array("train_lbl.npy"), 1))


def shift_test(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    save_array(run.file("test_lbl.npy"), np.roll(run.array("test_lbl.npy"), -2))


def copies(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    pixels = TRAIN.images.clone()
    pixels[100:140] = pixels[:40]
    patch.setitem(SOURCES, "gratings", lambda data_dir: (images(TRAIN, images=pixels), TEST))


def leak(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    """Thirty test images are training images, mirrored, each pixel up to 3 brighter or darker."""
    pixels = TEST.images.clone()
    noise = torch.randint(-3, 4, (30, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    pixels[:30] = (TRAIN.images[50:80].flip(3) + noise).clamp(0, 255).to(torch.uint8)
    patch.setitem(SOURCES, "gratings", lambda data_dir: (TRAIN, images(TEST, images=pixels)))
    crlf.embed(run, device="cpu")


def reset(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    weights = run.tensors(ENCODER)
    for name, value in weights.items():
        if name.endswith("running_var"):
            weights[name] = torch.full_like(value, 100.0)
    save_tensors(run.file(ENCODER), weights)


def coarse(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    edit(run, encoder="timm:resnet18")


def collapsed(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    rows = run.log()
    last = [row for row in rows if "h_spread" in row][-1]
    last |= {"h_spread": 1e-4, "h_agreement": 0.0, "z_spread": 1e-4, "z_agreement": 0.0}
    write_log(run, rows)


def stuck(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    write_log(run, [row | {"loss": 4.84 + 0.001 * (i % 3)} for i, row in enumerate(run.log())])
    save_array(run.file("loss.npy"), np.full(12, 4.84))


def rising(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    losses = run.array("loss.npy")
    losses[6:] += np.linspace(0, 1, 6)
    save_array(run.file("loss.npy"), losses)


def worthless(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("crlf.evaluation.doctor.training.FEW", 100)  # that its 144 steps are few is true as well
    run.update_scores(linear_over_untrained={"difference": -0.021, "interval": [-0.04, -0.002]})


def over_at_once(run: crlf.Run, patch: pytest.MonkeyPatch) -> None:
    """What it was worth is not known."""
    patch.setitem(CHECKS, "worth", lambda case: None)
    run.update_scores(linear_over_untrained={"difference": 0.0, "interval": [-0.02, 0.02]})
    run.update_scores(knn_over_untrained={"difference": 0.0, "interval": [-0.02, 0.02]})
    write_log(run, [*run.log(), run.log()[-1] | {"step": 52, "epoch": 0.4}])


def write_log(run: crlf.Run, rows: list[dict]) -> None:
    run.file("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITTEN: dict[str, tuple[Callable[[crlf.Run, pytest.MonkeyPatch], None], str, str]] = {
    "shifted training labels": (shift_train, "shifted_labels", "labels 1 row below"),
    "shifted test labels": (shift_test, "shifted_labels", "labels 2 rows above"),
    "copies": (copies, "duplicates", "40 of 768"),
    "leaked": (leak, "leakage", "30 of 300 (10.0 %)"),
    "batch norm reset": (reset, "batch_norm", "off by a factor of"),
    "stem": (coarse, "stem", "only 1 × 1"),
    "collapsed": (collapsed, "collapse", "0.000"),
    "loss stuck": (stuck, "loss", "from 4.84"),
    "worth less than untrained": (worthless, "worth", "2.1 points below the same encoder untrained"),
    "over at once": (over_at_once, "short_training", "52 steps, 0.4 epochs of 130 steps"),
    "loss rose": (rising, "loss", "with muon, lr 0.02"),
}


@pytest.mark.parametrize("fault", WRITTEN)
def test_a_fault_in_the_run_is_found(copy: crlf.Run, monkeypatch: pytest.MonkeyPatch, fault: str):
    spoil, name, evidence = WRITTEN[fault]
    spoil(copy, monkeypatch)
    findings = found(copy)
    assert list(findings) == [name]
    assert evidence in findings[name]


def test_every_check_has_a_planted_fault():
    assert set(TRAINED) | {name for _, name, _ in WRITTEN.values()} == set(CHECKS)


def test_the_leak_tells_what_it_does_to_the_score(copy: crlf.Run, monkeypatch: pytest.MonkeyPatch):
    leak(copy, monkeypatch)
    right = copy.array("test_pred.npy") == copy.array("test_lbl.npy")
    expected = (
        f"is right on {100 * right[:30].mean():.1f} % of these and on {100 * right[30:].mean():.1f} % of the rest"
    )
    assert expected in found(copy)["leakage"]


# What cannot be looked at


def test_without_labels_the_rest_is_looked_at(copy: crlf.Run, capsys):
    for name in ("train_lbl.npy", "test_lbl.npy", "test_pred.npy"):
        copy.file(name).unlink()
    edit(copy, optim=dataclasses.asdict(OptimSettings(lr=5.0)))
    assert set(found(copy)) == {"learning_rate"}
    assert "skipped:\n   shifted_labels: the images have no labels" in capsys.readouterr().out


def test_what_is_missing_or_damaged_is_said_and_ends_nothing(copy: crlf.Run, capsys):
    for name in ("views.npy", "encoder_simclr.pth", "train_emb.npy"):
        copy.file(name).unlink()
    np.save(copy.file("loss.npy"), np.array(["x"]))
    copy.file("log.jsonl").write_text("{}\n")
    assert cli.main(["doctor", str(copy.path)]) == 0
    said = capsys.readouterr().out
    for words in (
        "`crlf embed",
        "the log has no loss",
        "loss.npy must hold finite numbers",
        "no measures of the features",
        "views.npy'",
    ):
        assert words in " ".join(said.split()), words
    np.save(copy.file("views.npy"), np.zeros(3))
    crlf.doctor(copy)
    assert "views.npy must be (n, 1 + V, C, h, w), not (3,)" in " ".join(capsys.readouterr().out.split())


def test_images_that_cannot_be_loaded_leave_the_other_checks(copy: crlf.Run, monkeypatch: pytest.MonkeyPatch, capsys):
    def gone(data_dir):
        raise InputError("no source has them")

    monkeypatch.setitem(SOURCES, "gratings", gone)
    assert found(copy) == {}
    said = " ".join(capsys.readouterr().out.split())
    assert "weak_augmentation, batch_norm, duplicates, leakage: no source has them" in said


# The measures


@pytest.mark.parametrize("name, side, places", [("cnn", 32, 4), ("resnet18", 32, 4), ("resnet18", 64, 2)])
def test_places_left_are_the_sides_of_the_last_maps(name: str, side: int, places: int):
    assert places_left(name, 3, side) == (places, False)


def test_a_vit_is_judged_by_its_patches():
    assert places_left("vit_tiny", 3, 32) == (8, True)
    assert places_left("timm:resnet18", 3, 32) == (1, False)
    assert places_left("timm:vit_tiny_patch16_224", 3, 32) == (2, True)


def test_a_power_law_is_continued():
    epochs = np.arange(1, 21)
    for a, b, c in ((3.0, 2.0, 0.8), (1.0, 1.5, 0.3)):
        assert extrapolate(a + b * epochs**-c, 40) == pytest.approx(a + b * 40**-c, abs=0.01)
    assert extrapolate(np.full(8, 2.0), 16) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.long
def test_a_longer_run_does_as_the_curve_says(tmp_path: Path):
    """The extrapolation of the first epochs lies near what the epochs after them reach, at a constant rate."""
    optim = OptimSettings(optimizer="adam", lr=1e-3, warmup=0.0, final_lr=1.0)
    recipe = Recipe(**SOUND | {"optim": optim, "epochs": 16})
    losses = crlf.pretrain(recipe, out=tmp_path / "r", device="cpu").array("loss.npy")
    fall = losses[0] - losses[7]
    assert abs(extrapolate(losses[:8], 16) - losses[15]) < 0.2 * fall


def test_statistics_are_numpys():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    x = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5])[:, None, None]
    [(name, off, steps)] = statistics(net, x)
    variances = x.numpy().transpose(1, 0, 2, 3).reshape(2, -1).var(axis=1, ddof=1)
    assert (name, steps) == ("0", 0) and off == pytest.approx(np.abs(np.log(variances)).mean(), rel=1e-3)


def test_correlation_is_numpys_and_sees_mirror_images():
    a, b = TRAIN.images[:5], TRAIN.images[5:10]
    both = [[np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(p, b, strict=True)] for p in (a, a.flip(3))]
    np.testing.assert_allclose(correlation(a, b), np.max(both, axis=0), atol=1e-5)
    np.testing.assert_allclose(correlation(a, a.flip(3)), 1, atol=1e-5)


@pytest.mark.parametrize("n", [30, 200])
def test_ridge_is_scikit_learns(n: int):
    from sklearn.linear_model import RidgeClassifier

    random = np.random.default_rng(0)
    x, y = random.normal(size=(n, 60)).astype(np.float32), random.integers(3, size=n)
    x[:, :3] += 2 * np.eye(3, dtype=np.float32)[y]
    test = random.normal(size=(100, 60)).astype(np.float32)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    theirs = RidgeClassifier(alpha=0.01 * n).fit((x - mean) / scale, y).predict((test - mean) / scale)
    assert (ridge(x, y, test) == theirs).mean() > 0.97


def test_labels_in_blocks_are_not_called_shifted():
    """Sorted by class, a row on is nearly always the same label: no shift is better than none."""
    random = np.random.default_rng(0)
    y = np.sort(random.integers(5, size=1000))
    x = (np.eye(5)[y] * 3 + random.normal(size=(1000, 5))).astype(np.float32)
    assert best_shift(x, y, x, y, "train") is None


def test_embeddings_of_noise_are_not_called_shifted():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1000, 20)).astype(np.float32), random.integers(10, size=1000)
    assert best_shift(x, y, x, y, "train") is None


def test_the_data_set_of_the_tests_has_no_copies():
    assert len(np.unique(shapes.load()[0].images.flatten(1).numpy(), axis=0)) == shapes.TRAIN
