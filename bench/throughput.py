"""Images a second of SimCLR training on CIFAR-10: CRLF beside lightly, torchvision v2 and kornia.

Each runs as its users run it. All train the same network (the light CNN and its projector) on the same batches of 256
images, two views each, of the same size, in one process on the same threads; only one runs at a time, in turn. CRLF
runs its own loop with Muon; the others run the loop of lightly's documented SimCLR example (two forwards, NTXentLoss,
SGD). lightly and torchvision transform image by image in a DataLoader with one worker a core, kornia the batch in the
training process. A round of 24 steps is timed from the first batch that arrives, so that no start-up
counts; the batches that the workers have made ahead by then, about two, are to the DataLoaders' advantage.

The parts: from lightly's loop to CRLF's, one change at a time; bf16 only where CRLF would use it, on a CPU that
multiplies it faster. The bare network is the limit: forward, backward and optimizer on ready-made views.

The peers are an extra: `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.timing import each_in_turn, median_ratio
from bench.views import CIFAR10, pipeline
from crlf.augmentation import Views, ViewSettings
from crlf.data import load
from crlf.encoders import build
from crlf.errors import InputError
from crlf.methods.simclr import SimCLR, SimCLRSettings
from crlf.recipe import Recipe
from crlf.runs.run import Run
from crlf.runtime.devices import autocast, keep_freed_memory, multiplies_bf16
from crlf.runtime.seeding import generator
from crlf.training.loop import train
from crlf.training.state import State

BATCH, STEPS = 256, 24
CPU = torch.device("cpu")
LIGHTLY = "lightly 1.6, its SimCLR example"
Pair = tuple[Tensor, Tensor]
SHARES = {24: 0.75, 32: 1.0}  # of CIFAR-10's 32 pixels


class Images(Dataset[Any]):
    """Pictures as a data set on disk gives them: PIL images through a transform."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]):
        from torchvision.transforms.v2.functional import to_pil_image

        self.pictures = [to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i])


def network() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(build("cnn", 3, 32), SimCLRSettings()).train()


def loader(images: Tensor, transform: Callable[[Any], Any]) -> DataLoader[Any]:
    workers = len(os.sched_getaffinity(0))
    return DataLoader(Images(images, transform), BATCH, num_workers=workers, persistent_workers=True, drop_last=True)


def lightly_pairs(images: Tensor, size: int) -> Iterable[Any]:
    from lightly.transforms.simclr_transform import SimCLRTransform

    return loader(images, SimCLRTransform(input_size=size, gaussian_blur=0.0))


def torchvision_pairs(images: Tensor, size: int) -> Iterable[Any]:
    view = pipeline(ViewSettings(), size=size)
    return loader(images, lambda picture: (view(picture), view(picture)))


class KorniaPairs:
    """Batches of uint8 images, augmented by kornia in one go for each view."""

    def __init__(self, images: Tensor, size: int):
        import kornia.augmentation as K

        s = ViewSettings()
        self.images = images
        self.view = nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(s.crop_min, 1.0)),
            K.RandomHorizontalFlip(p=s.flip),
            K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.jitter),
            K.RandomGrayscale(p=s.grayscale),
            K.Normalize(torch.tensor(CIFAR10.mean), torch.tensor(CIFAR10.std)),
        )

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.images.split(BATCH):
            x = batch.float() / 255
            yield self.view(x), self.view(x)


class OurPairs:
    """CRLF's views, in batches."""

    def __init__(self, images: Tensor, size: int):
        self.images, self.view = images, Views(ViewSettings(resolution=SHARES[size]), CIFAR10)

    def __iter__(self) -> Iterator[Pair]:
        stream = generator("cpu", "bench")
        for batch in self.images.split(BATCH):
            yield self.view(batch, stream), self.view(batch, stream)


class Peer:
    """lightly's documented loop over batches of two views; rounds of STEPS steps."""

    def __init__(
        self, pairs: Iterable[Any], channels_last: bool = False, joined: bool = False, precision: str = "float32"
    ):
        from lightly.loss import NTXentLoss

        self.pairs, self.channels_last, self.joined = pairs, channels_last, joined
        self.in_precision = autocast(precision, CPU)
        self.model = network()
        if not channels_last:
            self.model.to(memory_format=torch.contiguous_format)
        self.criterion = NTXentLoss(temperature=0.2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)

    def __call__(self) -> float:
        """Seconds a step."""
        start, count = 0.0, 0
        for batch in self.pairs:
            start = start or time.perf_counter()
            self.step(batch[0], batch[1])
            count += 1
        return (time.perf_counter() - start) / count

    def step(self, x0: Tensor, x1: Tensor) -> None:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x0, x1 = (x.contiguous(memory_format=layout) for x in (x0, x1))
        with self.in_precision:
            z0, z1 = self.projections(x0, x1)
        self.criterion(z0.float(), z1.float()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def projections(self, x0: Tensor, x1: Tensor) -> Pair:
        model: Any = self.model
        if self.joined:
            z0, z1 = model.projector(model.encoder(torch.cat([x0, x1]))).chunk(2)
            return z0, z1
        return model.projector(model.encoder(x0)), model.projector(model.encoder(x1))


class Ours:
    """CRLF's own loop, saving left out."""

    def __init__(self, images: Tensor, size: int, compiled: bool = False, precision: str = "auto"):
        views = ViewSettings(resolution=SHARES[size])
        recipe = Recipe(views=2, batch_size=BATCH, epochs=1, augmentation=views, precision=precision)
        self.data = dataclasses.replace(load("cifar10")[0].first(len(images)), images=images)
        self.recipe = recipe.resolved(self.data)
        self.state = State(self.recipe, self.data, CPU)
        if compiled:
            self.state.method.compile()

    def __call__(self) -> float:
        self.state.step, self.state.seconds, self.state.share, self.state.epoch_losses = 0, 0.0, 0.0, []
        with tempfile.TemporaryDirectory() as folder:
            train(Run(folder), self.recipe, self.data, self.state)
        return self.state.seconds / STEPS


class Bare:
    """The limit: CRLF's network, layout and optimizer on views that are there already."""

    def __init__(self, images: Tensor, size: int):
        ours = Ours(images, size)
        self.method, self.optimizers = ours.state.method.train(), ours.state.optimizers
        self.in_precision = autocast(ours.recipe.precision, CPU)
        self.views = next(iter(OurPairs(images, size)))

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            with self.in_precision:
                loss = self.method(self.views)[0]
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return (time.perf_counter() - start) / STEPS


def contestants(images: Tensor, size: int) -> dict[str, Callable[[], float]]:
    """Seconds a step of each, by name; the parts in the order of the changes."""
    bf16: dict[str, Callable[[], float]] = {}
    if multiplies_bf16(CPU):
        bf16 = {
            "part: and bf16": Peer(OurPairs(images, size), channels_last=True, joined=True, precision="bf16"),
            "CRLF, float32": Ours(images, size, precision="float32"),
        }
    return {
        LIGHTLY: Peer(lightly_pairs(images, size)),
        "part: CRLF's views instead": Peer(OurPairs(images, size)),
        "part: and channels last": Peer(OurPairs(images, size), channels_last=True),
        "part: and one forward for both views": Peer(OurPairs(images, size), channels_last=True, joined=True),
        **bf16,
        "CRLF (its loop, with Muon)": Ours(images, size),
        "CRLF, torch.compile": Ours(images, size, compiled=True),
        "torchvision v2 in a DataLoader": Peer(torchvision_pairs(images, size)),
        "kornia": Peer(KorniaPairs(images, size)),
        "bare network": Bare(images, size),
    }


def measure(rounds: int = 3) -> list[dict[str, Any]]:
    try:
        import kornia as kornia
        import lightly as lightly
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[bench]'") from error
    keep_freed_memory()
    images = load("cifar10")[0].images[: STEPS * BATCH]
    rows = []
    for size in SHARES:
        seconds = each_in_turn(contestants(images, size), rounds)
        peer = seconds[LIGHTLY]
        rows += [
            {
                "view": f"{size} px",
                "what": name,
                "images_per_second": BATCH / statistics.median(times),
                "times_lightly": median_ratio(peer, times),
            }
            for name, times in seconds.items()
        ]
    return rows
