"""90.0 % kNN (k = 10, cosine) on CIFAR-10 as quickly as a GPU can: `--recipe speedrun-knn90`, three seeds."""

from __future__ import annotations

from typing import Any

from bench import cifar10
from crlf.runtime.devices import pick_device


def measure() -> list[dict[str, Any]]:
    return cifar10.measure("--recipe", "speedrun-knn90", device=pick_device("cuda").type)
