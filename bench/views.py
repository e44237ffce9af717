"""Views a second of 32 px on CIFAR-10, each pipeline as its users run it, all on the same cores.

CRLF makes batches of 256 in one process. torchvision v2 on tensors and the PIL pipeline of the SimCLR papers' code go
image by image, in a DataLoader with one worker a core. The augmentation is the same: crop, flip, jitter, grayscale.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.timing import in_turn, median_ratio
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED, load
from crlf.runtime.devices import keep_freed_memory
from crlf.runtime.seeding import generator

BATCH = 256
CIFAR10 = PUBLISHED["cifar10"]


class Transformed(Dataset[torch.Tensor]):
    """The first images under a transform of one image, twice each."""

    def __init__(self, images: torch.Tensor, transform: v2.Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(self.images[i // 2])


def pipeline(settings: ViewSettings, *first: v2.Transform, size: int = 32) -> v2.Compose:
    jitter = v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
    return v2.Compose(
        [
            *first,
            v2.RandomResizedCrop(size, scale=(settings.crop_min, 1.0), antialias=True),
            v2.RandomHorizontalFlip(settings.flip),
            v2.RandomApply([jitter], settings.jitter),
            v2.RandomGrayscale(settings.grayscale),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(CIFAR10.mean), list(CIFAR10.std)),
        ]
    )


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    keep_freed_memory()
    settings = ViewSettings(resolution=1.0)
    images = load("cifar10")[0].images
    make, stream = Views(settings, CIFAR10), generator("cpu", "bench")
    batches = images[: 16 * BATCH].split(BATCH)

    def ours() -> None:
        for batch in batches:
            make(batch, stream)
            make(batch, stream)

    def loader(count: int, *first: v2.Transform) -> DataLoader[torch.Tensor]:
        data = Transformed(images[:count], pipeline(settings, *first))
        return DataLoader(data, BATCH, num_workers=len(os.sched_getaffinity(0)), persistent_workers=True)

    tensors, pictures = loader(4 * BATCH), loader(4 * BATCH, v2.ToPILImage())
    counts = {"CRLF": 2 * 16 * BATCH, "torchvision v2, tensors": 2 * 4 * BATCH, "torchvision v2, PIL": 2 * 4 * BATCH}
    things = {
        "CRLF": ours,
        "torchvision v2, tensors": lambda: list(tensors),
        "torchvision v2, PIL": lambda: list(pictures),
    }
    seconds = in_turn(things, rounds)
    per_view = {name: [s / counts[name] for s in seconds[name]] for name in things}
    return [
        {
            "pipeline": name,
            "views_per_second": 1 / statistics.median(per_view[name]),
            "times_faster_than_it": median_ratio(per_view[name], per_view["CRLF"]),
        }
        for name in things
    ]
