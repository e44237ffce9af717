"""Every method learns: after seconds its encoder tells classes that an untrained one does not; and guards are needed.

The images are gratings: a class is an orientation; phase and noise are nuisances.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_methods import NARROW

import crlf
from crlf import encoders
from crlf.data import SOURCES, ImageSet
from crlf.embeddings import embed_images
from crlf.encoders import CNN, ENCODERS
from crlf.methods import METHODS
from crlf.optim import OptimSettings
from crlf.probes import PROBES
from crlf.recipe import Recipe
from crlf.runs import ENCODER
from crlf.views import ViewSettings

WIDER = {**NARROW, "hidden": 64, "projection": 32, "bottleneck": 16, "predictor": 64, "prototypes": 24, "queue": 256}
VIEWS = ViewSettings(
    resolution=1.0, crop_min=0.6, flip=0.0, jitter=0.0, grayscale=0.0
)  # a mirror image has another class


def gratings(count: int, seed: int, size: int = 16, classes: int = 6) -> ImageSet:
    """uint8 (N, 3, 16, 16)."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    angle = math.pi * (labels + 0.3 * torch.rand(count, generator=g)) / classes
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]  # (N, 16, 16)
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=g)
    wave = torch.sin(2 * math.pi * along / 5 + phase)[:, None]
    noise = 45 * torch.randn(count, 3, size, size, generator=g)
    images = (128 + 20 * wave + noise).clamp(0, 255).to(torch.uint8)
    return ImageSet(images, labels, tuple(map(str, range(classes))), tuple(map(str, range(count))))


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    return gratings(768, seed=0), gratings(500, seed=1)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, sets: tuple[ImageSet, ImageSet]) -> None:
    monkeypatch.setitem(SOURCES, "gratings", lambda data_dir: sets)
    monkeypatch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
    monkeypatch.setattr("crlf.training.tell_cost", lambda state, data: None)


def knn(encoder: torch.nn.Module, sets: tuple[ImageSet, ImageSet]) -> float:
    train, test = (embed_images(encoder.eval(), part.images, VIEWS) for part in sets)
    predicted = PROBES["knn"](train, sets[0].labels.numpy(), test).predictions
    return float((predicted == sets[1].labels.numpy()).mean())


def moderate(name: str, **other: float):
    fields = {field.name for field in dataclasses.fields(METHODS[name].Settings)}
    chosen = {**WIDER, "target_momentum": 0.5, **other}
    return METHODS[name].Settings(**{k: v for k, v in chosen.items() if k in fields})


@pytest.mark.parametrize("name", METHODS)
def test_it_beats_an_untrained_encoder(name: str, tables: None, sets: tuple[ImageSet, ImageSet], tmp_path):
    epochs = 16 if name == "byol" else 8  # it starts slowly
    recipe = Recipe(
        method=name, data="gratings", encoder="tiny", batch_size=64, views=2, epochs=epochs,
        augmentation=VIEWS, optim=OptimSettings(lr=0.03), head=moderate(name),
    )  # fmt: skip
    encoder = encoders.build("tiny", 3, 16)
    before = knn(encoder, sets)
    run = crlf.pretrain(recipe, out=tmp_path, device="cpu")
    encoder.load_state_dict(run.tensors(ENCODER))
    after = knn(encoder, sets)
    print(name, before, after)
    assert after > before + 0.1
