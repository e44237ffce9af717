"""It learns: a short loss curve that no refactor may change, and encoders that beat an untrained one by a margin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import crlf
from crlf import data, encoders
from crlf.embeddings import embed_images, load_encoder
from crlf.methods import base, simclr
from crlf.probes import PROBES
from crlf.recipe import Recipe
from crlf.views import Views, ViewSettings

GOLDEN = Path(__file__).parent / "golden" / "simclr_shapes.json"
CURVE = Recipe(data="shapes", subset=640, batch_size=64, views=2, epochs=2)  # twenty steps
TOLERANCE = 0.01  # of the loss; AVX2 and AVX-512 differ by less than a tenth of this


def curve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of each of twenty steps."""
    monkeypatch.setattr("crlf.course.LOG_EVERY", 1)
    return [row["loss"] for row in crlf.pretrain(CURVE, out=folder, device="cpu").log()]


def test_golden_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a change that is meant to change it: `python tests/golden/remake.py`."""
    np.testing.assert_allclose(curve(tmp_path, monkeypatch), json.loads(GOLDEN.read_text()), rtol=TOLERANCE)


def wrong_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr.nt_xent_views
    monkeypatch.setattr(simclr, "nt_xent_views", lambda z, t: right(torch.stack([z[0], z[1].roll(1, 0)]), t))


def no_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.F, "normalize", lambda z, dim: z / 10)


def one_side_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr.nt_xent_views
    monkeypatch.setattr(simclr, "nt_xent_views", lambda z, t: right(torch.stack([z[0], z[1].detach()]), t))


def no_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ViewSettings(crop_min=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
    monkeypatch.setattr("crlf.training.Views", lambda settings: Views(plain))


@pytest.mark.parametrize("error", [wrong_pairs, no_unit_length, one_side_detached, no_augmentation])
def test_the_golden_curve_notices_planted_errors(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    error(monkeypatch)
    spoiled = curve(tmp_path, monkeypatch)
    difference = np.abs(np.array(spoiled) / json.loads(GOLDEN.read_text()) - 1)
    assert difference.max() > 3 * TOLERANCE


def accuracies(encoder: torch.nn.Module, train: data.ImageSet, test: data.ImageSet) -> dict[str, float]:
    a, b = (embed_images(encoder, split.images, ViewSettings()) for split in (train, test))
    assert train.labels is not None and test.labels is not None
    predicted = {name: probe(a, train.labels.numpy(), b).predictions for name, probe in PROBES.items()}
    return {name: float((p == test.labels.numpy()).mean()) for name, p in predicted.items()}


def gains(recipe: Recipe, folder: Path, train: data.ImageSet, test: data.ImageSet) -> dict[str, float]:
    """Accuracy of the trained encoder less that of an untrained one, by probe."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        before = accuracies(encoders.build(recipe.encoder, 3, 32).eval(), train, test)
    run = crlf.pretrain(recipe, out=folder, device="cpu")
    after = accuracies(load_encoder(run, recipe, train.images.shape[1:]), train, test)
    return {name: after[name] - before[name] for name in PROBES}


def test_it_learns_shapes_in_seconds(tmp_path: Path):
    recipe = Recipe(data="shapes", epochs=4, views=2, batch_size=128)
    gain = gains(recipe, tmp_path, *data.load("shapes"))
    assert gain["knn"] > 0.12  # 0.18 -> 0.42 when this was written; chance is 0.125
    assert gain["linear"] > 0.02  # 0.73 -> 0.79


def test_it_learns_real_images(tmp_path: Path, cifar10: tuple[data.ImageSet, data.ImageSet]):
    recipe = Recipe(subset=4000, epochs=4, views=2, batch_size=128)
    gain = gains(recipe, tmp_path, *(split.first(4000) for split in cifar10))
    print(gain)
    assert gain["knn"] > 0.05
    assert gain["linear"] > 0.03
