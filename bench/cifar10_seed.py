"""The original project's settings with CRLF's network: `python simclr_train.py --recipe seed`, one seed."""

from __future__ import annotations

from typing import Any

from bench import cifar10


def measure() -> list[dict[str, Any]]:
    return cifar10.measure("--recipe", "seed", seeds=(0,))
