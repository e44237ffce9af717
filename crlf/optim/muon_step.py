"""Muon: momentum whose matrices are made nearly orthogonal (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from crlf.optim.updates import add_scaled, as_part_of, momentum_buffer, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest slope at 0 that still ends in 0.7..1.2 (Jordan et al. 2024)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 by a quintic Newton-Schulz iteration (Jordan et al. 2024, Muon).

    Args:
        matrices: float (..., M, N).

    Returns:
        The same shape and dtype. Singular values above 0.003 of the matrix's norm become about 0.7..1.2.
    """
    # Tensor cores are fastest in bf16. On a CPU without bf16 units, a step of torch.optim.Muon took 565 ms in bf16,
    # and 20 ms in float32 (four matrices of the light CNN, two AVX2 cores).
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = plain_iteration(x) if matrices.is_cuda else through_gram(x)
    return (x.mT if tall else x).to(matrices.dtype)


def plain_iteration(x: Tensor) -> Tensor:
    """Five times X <- P X with P = a + b G + c G^2 and G = X X^T: float (..., M, N), of norm 1."""
    a, b, c = NEWTON_SCHULZ
    batch = x if x.ndim == 3 else x[None]
    for _ in range(5):
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    return batch.view(x.shape)


def through_gram(x: Tensor) -> Tensor:
    """As `plain_iteration`, but only G is iterated, G <- P G P, and the product of all P is applied to X at the end.

    All matrices but X are then symmetric, (M, M) and polynomials of the first G, so their order does not matter. For a
    3x3 convolution (N = 4.5 M or 9 M) this takes half of the multiplications. In float32 it is within 2e-3 of
    `plain_iteration`, for singular values down to 1e-6 of the largest; in bf16 it is not.
    """
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT  # (..., M, M)
    eye = torch.eye(gram.size(-1), dtype=x.dtype, device=x.device)
    product = a * eye + b * gram + c * gram @ gram
    factor = product
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = a * eye + b * gram + c * gram @ gram
        product = factor @ product
    return product @ x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A convolution's weight (O, I, k, k) counts as a matrix (O, I k k). torch.optim.Muon refuses these and always
    computes in bf16; see `orthogonalise`. A group's `lr` may be a tensor.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for alike in alike_in_shape(moving):
                directions = [whole(self._nesterov(p, group["momentum"])).flatten(1) for p in alike]  # (O, I k k)
                for p, direction in zip(alike, orthogonalise_all(directions), strict=True):
                    scale = max(1.0, direction.size(0) / direction.size(1)) ** 0.5
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    add_scaled(p, as_part_of(p, direction.view(p.shape)), group["lr"], -scale)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        buffer = momentum_buffer(self, p)
        buffer.mul_(momentum).add_(p.grad)
        return p.grad.add(buffer, alpha=momentum)


def alike_in_shape(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Groups that are orthogonalised together: on a GPU, all of one shape, to save kernel launches; else each alone."""
    groups: dict[Any, list[Tensor]] = {}
    for i, p in enumerate(parameters):
        groups.setdefault(p.flatten(1).shape if p.is_cuda else i, []).append(p)
    return list(groups.values())


def orthogonalise_all(matrices: Sequence[Tensor]) -> Sequence[Tensor]:
    """`orthogonalise` for matrices of one shape, as one batch."""
    if len(matrices) == 1:
        return [orthogonalise(matrices[0])]
    return orthogonalise(torch.stack(list(matrices))).unbind()
