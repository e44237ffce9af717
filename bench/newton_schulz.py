"""A step of Muon on the matrices of the light CNN: CRLF's, float32 on a CPU, and torch.optim.Muon's, always bf16."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from bench.timing import in_turn, median_ratio
from crlf.encoders import build
from crlf.optim import Muon


def measure(rounds: int = 7) -> list[dict[str, Any]]:
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in build("cnn", 3, 32).parameters() if p.ndim > 1]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    ours = Muon(matrices, lr=1e-3, momentum=0.95, weight_decay=0.0)
    theirs = torch.optim.Muon(matrices, lr=1e-3, momentum=0.95, weight_decay=0.0)
    seconds = in_turn({"CRLF, float32": ours.step, "torch.optim.Muon, bf16": theirs.step}, rounds)
    return [
        {
            "optimizer": name,
            "ms_a_step": 1000 * statistics.median(s),
            "of_CRLF": median_ratio(s, seconds["CRLF, float32"]),
        }
        for name, s in seconds.items()
    ]
