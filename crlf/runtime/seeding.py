"""Randomness as a function of what it is for: no generator state is ever saved."""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, *key: str | int) -> torch.Generator:
    """A generator that depends on the key alone, such as ("views", seed, step); near keys give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big", signed=True))
