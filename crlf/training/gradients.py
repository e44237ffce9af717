"""Computes the gradients of a batch's loss, in one pass or in parts if the batch does not fit in memory.

Computed in parts, the gradients equal those of the whole batch (Gao, Zhang, Han and Callan 2021, Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup, section 3: GradCache). The loss depends on the projections
alone, which are small. So each part is projected without keeping its activations, the loss of all projections gives the
gradient of each projection, and a second forward pass over each part takes these gradients to the weights. The price is
that second forward pass; the memory needed is that of one part.

Shapes: V views, B images of this process, P projection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crlf.methods.base import Method, compare
from crlf.runtime.batch_norm import FrozenNorms, joined
from crlf.runtime.sharing import Share
from crlf.training.engines import Engine

Loss = tuple[Tensor, dict[str, Tensor]]


def gradients(
    method: Method,
    views_of: Callable[[range], Sequence[Tensor]],
    parts: Sequence[range],
    told: Tensor | None,
    precision: contextlib.AbstractContextManager[Any],
    frozen: bool = False,
    engine: Engine | None = None,
) -> Loss:
    """Add the gradients of the batch's loss to those of the method's weights.

    Args:
        views_of: makes the views of a part's images, each float (b, C, h, w); repeated calls give the same views.
        parts: the images of this process, in parts that are projected one at a time.
        told: int64 (B,), the indices or labels of this process's images, see `compare`; None if the method needs none.
        precision: the autocast context of the forward passes.
        frozen: whether batch norm uses its running statistics and not those of each part.
        engine: of several processes; None for one.

    Returns:
        The loss and the method's other statistics for the batch of all processes, detached.
    """
    engine = engine or Engine(method)
    with FrozenNorms(method, passes=1 + (len(parts) > 1)) if frozen else joined():
        if len(parts) == 1:
            with engine.part():
                with precision:
                    loss, stats = compare(method, engine.project(views_of(parts[0])), told, engine.share)
                engine.share.weighted(loss).backward()
        else:
            loss, stats = in_parts(engine, views_of, parts, told, precision)
    return everyones(loss.detach(), stats, engine.share)


def everyones(loss: Tensor, stats: dict[str, Tensor], share: Share) -> Loss:
    """The loss and the statistics of the whole batch, from those of each process, with one message."""
    if share.whole:
        return loss, stats
    values = share.average(torch.stack([loss, *(value.to(loss) for value in stats.values())]))
    return values[0], dict(zip(stats, values[1:], strict=True))


def in_parts(
    engine: Engine,
    views_of: Callable[[range], Sequence[Tensor]],
    parts: Sequence[range],
    told: Tensor | None,
    precision: contextlib.AbstractContextManager[Any],
) -> Loss:
    """As `gradients`, with the activations of one part at a time."""
    method = engine.method
    device = next(method.parameters()).device
    found, states = [], []
    with remembering(method, 0.0):
        for part in parts:
            states.append(random_state(device))
            with precision:
                projections = method.project(views_of(part))
            found.append([rows.detach().requires_grad_(rows.requires_grad) for rows in projections])
            del projections  # and with it the part's activations
    with precision:
        joint = [torch.cat(rows, dim=1) for rows in zip(*found, strict=True)]
        loss, stats = compare(method, joint, told, engine.share)
    engine.share.weighted(loss).backward()
    with remembering(method, 1 / len(parts)):
        for part, state, cached in zip(parts, states, found, strict=True):
            set_random_state(device, state)
            with engine.part(last=part is parts[-1]):
                with precision:
                    projections = engine.project(views_of(part))
                felt = [(z, kept.grad) for z, kept in zip(projections, cached, strict=True) if kept.grad is not None]
                torch.autograd.backward([z for z, _ in felt], [grad for _, grad in felt])
    return loss, stats


@contextlib.contextmanager
def remembering(method: nn.Module, share: float) -> Iterator[None]:
    """Scale the momentum of batch norms so that n parts with `share` 1 / n update them as one batch does."""
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = None if momentum is None else 1 - (1 - momentum) ** share
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the generators that dropout draws from, on the CPU and on a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
