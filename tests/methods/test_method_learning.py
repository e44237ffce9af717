"""Every method learns: after seconds its encoder tells classes that an untrained one does not; and guards are needed.

The images are gratings: a class is an orientation; phase and noise are nuisances.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gratings import NORMALISATION, VIEWS, gradient_to_both_sides, gratings, moderate, no_predictor
from sampling import some
from torch import Tensor

import crlf
from crlf import encoders
from crlf.augmentation import Views
from crlf.data import SOURCES, ImageSet
from crlf.embedding.embed import embed_images
from crlf.encoders import CNN, ENCODERS
from crlf.methods import METHODS
from crlf.methods.base import Method, TaughtMethod, mlp, spread
from crlf.metrics.knn import knn_predict
from crlf.optim import OptimSettings
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    return gratings(768, seed=0), gratings(500, seed=1)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, sets: tuple[ImageSet, ImageSet]) -> None:
    monkeypatch.setitem(SOURCES, "gratings", lambda data_dir: sets)
    monkeypatch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)


def knn(encoder: torch.nn.Module, sets: tuple[ImageSet, ImageSet]) -> float:
    train, test = (embed_images(encoder.eval(), part.images, NORMALISATION) for part in sets)
    predicted = knn_predict(train, sets[0].labels.numpy(), test)
    return float((predicted == sets[1].labels.numpy()).mean())


@pytest.mark.parametrize(
    "name", some([name for name, kind in METHODS.items() if not issubclass(kind, TaughtMethod)], ["simclr", "dino"])
)
def test_it_beats_an_untrained_encoder(name: str, tables: None, sets: tuple[ImageSet, ImageSet], tmp_path):
    """In 8 epochs, or in 16: some start slowly (BYOL)."""
    recipe = Recipe(
        method=name, data="gratings", encoder="tiny", batch_size=64, views=2,
        augmentation=VIEWS, normalisation=NORMALISATION, optim=OptimSettings(lr=0.03), head=moderate(name),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        encoder = encoders.build("tiny", 3, 16)
    before = knn(encoder, sets)

    def after(epochs: int) -> float:
        run = crlf.pretrain(dataclasses.replace(recipe, epochs=epochs), out=tmp_path / str(epochs), device="cpu")
        encoder.load_state_dict(run.tensors(ENCODER))
        return knn(encoder, sets)

    assert any(after(epochs) > before + 0.2 for epochs in (8, 16))  # 0.45 -> 0.83..1 when written; chance is 0.17


# Collapse: without its guard a method gives every image the same. The projector of SimSiam loses its last batch norm in
# both arms, since that alone would hold the standard deviation up for a while.


def no_centring(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    method.settings = dataclasses.replace(method.settings, centre_momentum=1.0)  # it stays at 0


def no_variance(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    method.weights = (method.weights[0], 0.0, method.weights[2])


def trained(name: str, images: Tensor, monkeypatch: pytest.MonkeyPatch, spoil=None, steps: int = 100) -> Tensor:
    """Projections of 64 images after some training: (64, P)."""
    torch.manual_seed(0)
    method = METHODS[name](CNN(3, 1, (8, 16, 32), read=2), moderate(name)).train()
    if name == "simsiam":
        method.projector = mlp([method.encoder.out_dim, 32, 32], bias=False)
    if spoil:
        spoil(method, monkeypatch)
    lr = 0.005 if name == "vicreg" else 0.05
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        rows = torch.randint(len(images), (64,), generator=g)
        views = Views(VIEWS, NORMALISATION)(images[rows], g, 2).chunk(2)
        optimizer.zero_grad()
        method(views)[0].backward()
        optimizer.step()
        method.after_step(step / steps)
    with torch.no_grad():
        return method.projector(method.encoder(views[0]))


@pytest.mark.parametrize(
    "name, spoil, left",
    some(
        [
            ("simsiam", no_predictor, 0.1),
            ("simsiam", gradient_to_both_sides, 0.1),
            ("byol", no_predictor, 0.1),
            ("byol", gradient_to_both_sides, 0.1),
            ("dino", no_centring, 0.3),
            ("vicreg", no_variance, 0.4),
        ]
    ),
)
def test_without_its_guard_it_collapses(name: str, spoil, left: float, sets, monkeypatch):
    """Spread, the deviation of normalised features, was 0.58..0.92 with and 0.02..0.25 without, when written."""
    images = sets[0].images[:256]
    guarded = trained(name, images, monkeypatch)
    collapsed = trained(name, images, monkeypatch, spoil)
    assert spread(guarded) > 0.5 and spread(collapsed) < left
    if name == "vicreg":  # which does not normalise: its features go to 0
        assert guarded.std(dim=0).mean() > 0.8 and collapsed.std(dim=0).mean() < 0.05
