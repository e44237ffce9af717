"""What the references of losses are made of: drawn numbers, and Python's own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cos(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def near(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def cross_entropy_loop(scores: Tensor, target: Tensor, temperature: float) -> float:
    """Of distributions, both (B, M), mean over the rows."""
    terms = []
    for s, t in zip((scores / temperature).tolist(), target.tolist(), strict=True):
        total = sum(map(math.exp, s))
        terms.append(-sum(p * math.log(math.exp(x) / total) for p, x in zip(t, s, strict=True)))
    return mean(terms)
