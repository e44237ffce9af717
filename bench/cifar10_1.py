"""The one command with a single epoch: `python simclr_train.py --epochs 1`, three seeds."""

from __future__ import annotations

from typing import Any

from bench import cifar10


def measure() -> list[dict[str, Any]]:
    return cifar10.measure("--epochs", "1")
