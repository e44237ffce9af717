"""A step of Muon on the matrices of the light CNN: CRLF's, torch.optim's and timm's; and its iteration in bf16 or not.

CRLF computes in float32 on a CPU, through the Gram matrix; torch.optim.Muon and timm's always in bf16, plainly.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Muon as TimmMuon
from torch import nn

from bench.timing import in_turn, median_ratio
from crlf.encoders import build
from crlf.optim.muon_step import Muon, plain_iteration, through_gram

OURS = "step, CRLF, float32"


def measure(rounds: int = 7) -> list[dict[str, Any]]:
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in build("cnn", 3, 32).parameters() if p.ndim > 1]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    settings: dict[str, Any] = {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.0}
    wide = [m.detach() if m.size(0) <= m.size(1) else m.detach().T for m in matrices]
    wide = [m / m.norm() for m in wide]

    def each(iteration: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Callable[[], object]:
        given = [m.to(dtype) for m in wide]
        return lambda: [iteration(m) for m in given]

    seconds = in_turn(
        {
            OURS: Muon(matrices, **settings).step,
            "step, torch.optim.Muon, bf16": torch.optim.Muon(matrices, **settings).step,
            "step, timm.optim.Muon, bf16": TimmMuon(
                matrices, **settings, nesterov=True, ns_coefficients="original"
            ).step,
            "iteration through the Gram matrix, float32": each(through_gram, torch.float32),
            "plain iteration, float32": each(plain_iteration, torch.float32),
            "plain iteration, bf16": each(plain_iteration, torch.bfloat16),
        },
        rounds,
    )
    return [
        {"optimizer": name, "ms": 1000 * statistics.median(s), "of_CRLF": median_ratio(s, seconds[OURS])}
        for name, s in seconds.items()
    ]
