"""Random generators seeded by their purpose, so that no generator state needs to be saved."""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, *key: str | int) -> torch.Generator:
    """A generator seeded by a key such as ("views", seed, step). Similar keys give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big", signed=True))
