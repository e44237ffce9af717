"""It learns: two guards against a silent loss, and the errors that each was seen to catch.

The golden curve is the loss of twenty steps, which no refactor may change. The accuracy check trains on 5,000 real
images for less than a minute; its floors lie well above an untrained encoder and well below what is usual.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import some

import crlf
from crlf import data, encoders
from crlf.augmentation import Views, ViewSettings
from crlf.embedding.embed import embed_images, load_encoder
from crlf.encoders import Frozen
from crlf.evaluation.logistic_regression import fit_linear
from crlf.methods import base, simclr
from crlf.metrics.knn import knn_predict
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe

GOLDEN = Path(__file__).parent / "golden" / "simclr_shapes.json"
CIFAR10 = data.PUBLISHED["cifar10"]
CURVE = Recipe(
    data="shapes", subset=640, batch_size=64, views=2, epochs=2, precision="float32", normalisation=CIFAR10
)  # twenty steps
TOLERANCE = 0.01  # of the loss; AVX2 and AVX-512 differ by less than a tenth of this


def curve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of each of twenty steps."""
    monkeypatch.setattr("crlf.training.budget.LOG_EVERY", 1)
    return [row["loss"] for row in crlf.pretrain(CURVE, out=folder, device="cpu").log()]


def test_golden_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a change that is meant to change it: `python tests/golden/remake.py`."""
    np.testing.assert_allclose(curve(tmp_path, monkeypatch), json.loads(GOLDEN.read_text()), rtol=TOLERANCE)


def wrong_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr.nt_xent_views
    monkeypatch.setattr(simclr, "nt_xent_views", lambda z, t, share: right(torch.stack([z[0], z[1].roll(1, 0)]), t))


def no_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.F, "normalize", lambda z, dim: z / 10)


def one_side_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr.nt_xent_views
    monkeypatch.setattr(simclr, "nt_xent_views", lambda z, t, share: right(torch.stack([z[0], z[1].detach()]), t))


def detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient reaches the encoder."""
    right = simclr.nt_xent_views
    monkeypatch.setattr(simclr, "nt_xent_views", lambda z, t, share: right(z.detach(), t) + 0 * z.sum())


def no_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ViewSettings(crop_min=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
    monkeypatch.setattr("crlf.training.loop.Views", lambda settings, normalisation: Views(plain, normalisation))


PLANTED = [wrong_pairs, no_unit_length, one_side_detached, detached, no_augmentation]


@pytest.mark.long
@pytest.mark.parametrize("error", some(PLANTED))
def test_the_golden_curve_notices_planted_errors(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    error(monkeypatch)
    spoiled = curve(tmp_path, monkeypatch)
    difference = np.abs(np.array(spoiled) / json.loads(GOLDEN.read_text()) - 1)
    assert difference.max() > 3 * TOLERANCE


def accuracies(
    encoder: Frozen, train: data.ImageSet, test: data.ImageSet, by: Normalisation = CIFAR10
) -> dict[str, float]:
    a, b = (embed_images(encoder, split.images, by) for split in (train, test))
    assert train.labels is not None and test.labels is not None
    x, truth = train.labels.numpy(), test.labels.numpy()
    predicted = {"linear": fit_linear(a, x, C, tolerance=1e-6).predict(b), "knn": knn_predict(a, x, b)}
    return {name: float((p == truth).mean()) for name, p in predicted.items()}


def untrained(seed: int = 0) -> Frozen:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Frozen(encoders.build("cnn", 3, 32, REAL.embedding.regions), REAL.embedding.mirror)


def learned(recipe: Recipe, folder: Path) -> Frozen:
    return load_encoder(crlf.pretrain(recipe, out=folder, device="cpu"), recipe, torch.Size((3, 32, 32)))


@pytest.mark.long
def test_it_learns_shapes_in_seconds(tmp_path: Path):
    recipe = Recipe(data="shapes", epochs=6, views=2, batch_size=128)
    sets, by = data.load("shapes"), data.PUBLISHED["shapes"]
    before, after = (accuracies(e, *sets, by) for e in (untrained(), learned(recipe, tmp_path)))
    assert after["knn"] - before["knn"] > 0.2  # chance is 0.125
    assert after["linear"] - before["linear"] > 0.02


REAL = Recipe(subset=5000, epochs=6, views=2, batch_size=128)
C = 0.02  # of the linear probe
FLOORS = {"linear": 0.625, "knn": 0.46}


def guard(encoder: Frozen, train: data.ImageSet, test: data.ImageSet) -> bool:
    """Whether an encoder that learned from these training images is as good as it should be."""
    found = accuracies(encoder, train, test)
    print(found)
    return all(found[name] >= floor for name, floor in FLOORS.items())


@pytest.fixture(scope="module")
def real(cifar10: tuple[data.ImageSet, data.ImageSet]) -> list[data.ImageSet]:
    return [split.first(REAL.subset) for split in cifar10]


@pytest.mark.long
def test_it_learns_real_images(tmp_path: Path, real: list[data.ImageSet]):
    """And the same encoder fails where labels are shifted by one, as an untrained one does."""
    encoder, (train, test) = learned(REAL, tmp_path), real
    assert guard(encoder, train, test)
    assert train.labels is not None
    assert not guard(encoder, dataclasses.replace(train, labels=train.labels.roll(1)), test)
    assert not guard(untrained(), train, test)


@pytest.mark.system
@pytest.mark.parametrize("error", [wrong_pairs, no_unit_length, detached, no_augmentation])
def test_the_accuracy_check_notices_planted_errors(error, tmp_path: Path, monkeypatch, real: list[data.ImageSet]):
    error(monkeypatch)
    assert not guard(learned(REAL, tmp_path), *real)
