"""94.0 % linear on CIFAR-10 with a ResNet-18 on a GPU: `--recipe r18-best`, three seeds."""

from __future__ import annotations

from typing import Any

from bench import cifar10
from crlf.runtime.devices import pick_device


def measure() -> list[dict[str, Any]]:
    return cifar10.measure("--recipe", "r18-best", device=pick_device("cuda").type)
