"""The contestants of a trial. Each embeds every image; some are trained first, each in its own run folder.

Shapes: N images of the training part, M of the test part, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf import encoders
from crlf.data import ImageSet, ImageSettings
from crlf.defaults import Unasked
from crlf.embedding.embed import embed_images, load_encoder
from crlf.encoders import TIMM, InitSettings
from crlf.evaluation.baselines import SIDE, shrunk
from crlf.evaluation.embedded import splits_of
from crlf.methods.distill import DistillSettings
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe, settled
from crlf.runs import checkpoints
from crlf.runs.run import ENCODER, Run
from crlf.runtime.devices import pick_device
from crlf.runtime.seeding import generator
from crlf.training.prepare import of_weights, starting
from crlf.training.pretrain import pretrain
from crlf.training.weights.sources import FOLDER, HUB

SHARES = (0.1, 0.3)  # of the images, for the learning curve, beside training on all of them
GRAY = Normalisation(mean=(0.5,), std=(0.25,))  # for raw pixels
FEWEST = 20  # training images; a point of the curve with fewer is left out

Kind = Literal["pixels", "untrained", "model", "scratch", "start", "distilled", "share"]
TRAINED: tuple[Kind, ...] = ("scratch", "start", "distilled", "share")


@dataclass(frozen=True)
class Contestant:
    """A contestant, one row of the table."""

    name: str
    kind: Kind
    source: str = ""
    """The source of its trained weights, as for `--init`."""
    share: float = 1.0
    """The share of the images that it learns from."""

    @property
    def trained(self) -> bool:
        return self.kind in TRAINED

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name).strip("-")


class Shown(NamedTuple):
    """The embeddings of a contestant."""

    train: np.ndarray  # float32 (N, D)
    test: np.ndarray  # float32 (M, D); the same array if all images are tested by cross-validation
    encoder: nn.Module  # frozen
    images: Tensor  # uint8 (M, C, H, W), or (N, C, H, W) without test images, at the size that the encoder sees
    normalisation: Normalisation


class Place(NamedTuple):
    """The inputs of a trial."""

    recipe: Recipe
    """The recipe as given; its minutes are those of the whole trial."""
    models: tuple[str, ...]
    out: Path
    data_dir: str | Path | None
    device: str


def contestants(place: Place, images: int) -> Iterator[Contestant]:
    """The contestants of a trial, those without training first.

    Args:
        images: the number of training images.
    """
    yield Contestant("raw pixels", "pixels")
    yield Contestant("untrained", "untrained")
    for model in place.models:
        yield Contestant(f"{called(model)} as it is", "model", model)
    yield Contestant("SimCLR from scratch", "scratch")
    for share in sorted(SHARES, reverse=True):
        if round(share * images) >= FEWEST:
            yield Contestant(f"SimCLR from scratch on {share:.0%} of the images", "share", share=share)
    if place.models:
        first = place.models[0]
        yield Contestant(f"SimCLR from {called(first)}", "start", first)
        yield Contestant(f"distilled from {called(first)}", "distilled", first)


def called(source: str) -> str:
    """The name of a model, or the last part of its path."""
    return source if source.startswith((TIMM, HUB)) else Path(source.removeprefix(FOLDER)).name


class Images:
    """The images of a trial, read once per set of image settings."""

    def __init__(self, place: Place):
        self.place = place
        self.read: dict[tuple[ImageSettings, int], tuple[ImageSet, ImageSet]] = {}

    def of(self, recipe: Recipe) -> tuple[ImageSet, ImageSet]:
        """The training and the test images that a recipe embeds."""
        key = (settled(recipe.images), recipe.subset)
        if key not in self.read:
            self.read[key] = splits_of(dataclasses.replace(recipe, images=key[0]), self.place.data_dir)
        return self.read[key]


def shown(contestant: Contestant, place: Place, images: Images, minutes: float = 0.0) -> Shown:
    """The embeddings of a contestant, which is trained first if needed.

    Args:
        minutes: its training time.
    """
    if contestant.kind == "pixels":
        train, test = images.of(own(place.recipe))
        first = shrunk(train.images)
        second = first if test is train else shrunk(test.images)
        return Shown(first, second, Pixels(), tested(train, test), GRAY)
    if contestant.kind == "untrained":
        return untrained(place, images)
    run = run_of(contestant, place, images, minutes)
    recipe = dataclasses.replace(run.recipe, data=place.recipe.data)  # a share of the images was given as an array
    train, test = images.of(recipe)
    return of_network(load_encoder(run, recipe, train.images.shape[1:]), train, test, recipe.normalisation, place)


def of_network(network: nn.Module, train: ImageSet, test: ImageSet, by: Normalisation, place: Place) -> Shown:
    network = network.to(pick_device(place.device))
    first = embed_images(network, train.images, by)
    second = first if test is train else embed_images(network, test.images, by)
    return Shown(first, second, network, tested(train, test), by)


def tested(train: ImageSet, test: ImageSet) -> Tensor:
    return test.decoded if len(test) else train.decoded


class Pixels(nn.Module):
    """Pixels as embeddings: float (B, C, H, W) -> (B, C h w), averaged to at most `SIDE` × `SIDE` pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, min(SIDE, *x.shape[2:])).flatten(1)


def own(recipe: Recipe) -> Recipe:
    """The recipe without trained weights and the settings that belong to them."""
    asked = recipe if not recipe.start.init else dataclasses.replace(recipe, encoder=Recipe().encoder)
    return dataclasses.replace(asked, start=InitSettings(), minutes=0.0)


def untrained(place: Place, images: Images) -> Shown:
    """The encoder that training from scratch begins with."""
    train, test = images.of(own(place.recipe))
    recipe = settled(own(place.recipe).for_images(len(train))).resolved(train)
    _, channels, height, width = train.images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = encoders.build(recipe.encoder, channels, min(height, width), recipe.embedding.regions)
    return of_network(encoders.Frozen(network, recipe.embedding.mirror), train, test, recipe.normalisation, place)


# Contestants with a run folder


def run_of(contestant: Contestant, place: Place, images: Images, minutes: float) -> Run:
    """The finished run of a contestant: an existing one, a resumed one, or a new one."""
    folder = place.out / contestant.folder
    run, recipe = Run(folder), recipe_of(contestant, place, minutes)
    if run.file(ENCODER).is_file() and "train_seconds" in run.scores:
        return run
    data = None
    if contestant.kind == "share":
        recipe, data = on_a_share(contestant, recipe, images)
    resume = checkpoints.kept(run)
    if resume:
        recipe = run.recipe
    return pretrain(
        recipe, data=data, out=folder, data_dir=place.data_dir, device=place.device, resume=resume,
        overwrite=folder.exists() and not resume,
    )  # fmt: skip


def recipe_of(contestant: Contestant, place: Place, minutes: float) -> Recipe:
    """The recipe that a contestant is trained with."""
    recipe = dataclasses.replace(place.recipe, minutes=minutes)
    asked = recipe.start if recipe.start.init == contestant.source else InitSettings(init=contestant.source)
    if contestant.kind == "model":
        recipe = dataclasses.replace(recipe, start=asked, epochs=0, minutes=0.0)
        return of_weights(unless_named(recipe, contestant, place), starting(recipe))
    if contestant.kind == "start":
        return unless_named(dataclasses.replace(recipe, start=asked), contestant, place)
    scratch = dataclasses.replace(own(recipe), minutes=minutes)
    if contestant.kind != "distilled":
        return scratch
    teacher = contestant.source
    if Path(teacher).is_file():  # a file does not name its network; the run made from it does
        teacher = str(place.out / Contestant(f"{called(teacher)} as it is", "model").folder)
    views = dataclasses.replace(scratch.augmentation, local_views=0)  # distillation takes no small ones
    return dataclasses.replace(scratch, method="distill", head=DistillSettings(teacher=teacher), augmentation=views)


def unless_named(recipe: Recipe, contestant: Contestant, place: Place) -> Recipe:
    """The recipe with the network of the weights, unless the given encoder is meant for these weights."""
    ours = contestant.source == place.recipe.start.init or isinstance(recipe.encoder, Unasked)
    return recipe if ours else dataclasses.replace(recipe, encoder=Recipe().encoder)


def on_a_share(contestant: Contestant, recipe: Recipe, images: Images) -> tuple[Recipe, ImageSet]:
    """The recipe settled for all images, and a fixed share of them; larger shares contain the smaller ones."""
    train, _ = images.of(recipe)
    whole = settled(recipe.for_images(len(train))).resolved(train)
    order = torch.randperm(len(train), generator=generator("cpu", "share", recipe.seed))
    rows = order[: round(contestant.share * len(train))].sort().values
    few = ImageSet(train.images[rows].contiguous(), None, (), [train.ids[row] for row in rows.tolist()])
    size = dataclasses.replace(whole.images, image_size=min(train.images.shape[2:]))
    return dataclasses.replace(whole, images=size, batch_size=min(whole.batch_size, len(few))), few
