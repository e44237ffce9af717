"""Contrastive losses over all negatives of a batch, with the logits of a part of the batch in memory at a time.

Shapes: V views, B images in the batch, b of them in this process, P projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crlf.errors import InputError
from crlf.methods.base import in_float32
from crlf.runtime.sharing import WHOLE, Share

LOGITS = 2**24  # logits in memory at a time, 64 MB in float32; with several processes, each holds its share of them


@in_float32
def over_negatives(
    z: Tensor, temperature: float, loss: Callable[[Tensor, Tensor], Tensor], share: Share = WHOLE
) -> Tensor:
    """The mean contrastive loss over all ordered pairs of two views of the same image.

    The negatives of a pair are the V (B - 1) views of other images; further views of the same image are left out.

    Args:
        z: float (V, b, P), V at least 2; need not be normalised.
        temperature: divides the cosine similarities.
        loss: a function of the logits of the positives (V b, V - 1) and the log-sum-exp of the negatives (V b, 1).
        share: the share of this process, b images of B; the mean is over these b.

    Raises:
        InputError: B is 1.
    """
    B = share.count(z.shape[1])
    if B < 2:
        raise InputError(f"NT-Xent needs at least 2 images in a batch, not {B}: the others are the negatives")
    z = F.normalize(z, dim=2)
    positives = _other_views(z).flatten(0, 1) / temperature  # (V b, V - 1)
    negatives: Tensor = LogSumExpOfNegatives.apply(z, temperature, share)
    return loss(positives, negatives).mean()


def _other_views(z: Tensor) -> Tensor:
    """The cosine of each view with the other views of the same image: unit rows (V, B, P) -> (V, B, V - 1)."""
    view = torch.arange(len(z), device=z.device)
    others = view[:-1] + (view[:-1] >= view[:, None])  # (V, V - 1)
    return torch.einsum("vbp,wbp->vbw", z, z).gather(2, others[:, None].expand(-1, z.shape[1], -1))


class LogSumExpOfNegatives(torch.autograd.Function):
    """The log-sum-exp of the logits with views of other images: unit rows (V, b, P) and a temperature -> (V b, 1).

    At most `LOGITS` logits are in memory at a time. If these are all logits, they are kept for the gradient; otherwise
    they are computed again, so that memory grows with V B and not with its square. Since cosines are symmetric, row i
    of the logits gives the whole gradient of row i, from logits ij and ji. This saves a product and sums over blocks.
    It also lets each of several processes compute the logits of its own images alone. From the others it needs their
    rows and, for the gradient, two numbers per row.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, share: Share) -> Tensor:
        own = z.flatten(0, 1)  # (V b, P)
        columns = share.gather_views(own, len(z))  # (V B, P)
        image = share.numbers(z.shape[1], z.device).repeat(len(z))  # (V b,)
        blocks = _blocks(own, columns)
        found, kept = own.new_empty(len(own), 1), None
        for rows in blocks:
            logits = _logits_of_negatives(own[rows], columns, image[rows], len(columns) // len(z), temperature)
            highest = logits.amax(dim=1, keepdim=True)
            if len(blocks) == 1 and not share.whole:
                kept = logits.clone()
            exponentials = logits.sub_(highest).exp_()
            total = exponentials.sum(dim=1, keepdim=True)
            found[rows] = total.log() + highest
            if len(blocks) == 1 and share.whole:
                kept = exponentials.div_(total)
        ctx.save_for_backward(z, columns, image, found, kept)
        ctx.temperature, ctx.share = temperature, share
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, columns, image, found, kept = ctx.saved_tensors
        if kept is not None and ctx.share.whole:
            weights = kept * grad  # of logit ij
            return ((weights + weights.T) @ columns / ctx.temperature).view_as(z), None, None
        own, B = z.flatten(0, 1), len(columns) // len(z)
        theirs = ctx.share.gather_views(torch.cat([found, grad], dim=1), len(z))  # (V B, 2)
        found_ji, grad_ji = theirs.T.contiguous()[:, None]  # each (1, V B)
        grad_z = torch.empty_like(own)
        for rows in _blocks(own, columns):
            logits = (
                kept if kept is not None else _logits_of_negatives(own[rows], columns, image[rows], B, ctx.temperature)
            )
            weights = (logits - found_ji).exp_().mul_(grad_ji)  # of logit ji
            weights += logits.sub_(found[rows]).exp_().mul_(grad[rows])  # of logit ij
            grad_z[rows] = weights @ columns / ctx.temperature
        return grad_z.view_as(z), None, None


def _blocks(own: Tensor, columns: Tensor) -> list[slice]:
    """This process's rows in blocks, whose logits and the rows of others fit in its share of `LOGITS` numbers."""
    rows, room = len(own), LOGITS * len(own) // len(columns)
    room -= min(room // 2, (columns.numel() - own.numel()) // 2)
    size = max(1, room // len(columns))
    return [slice(first, first + size) for first in range(0, rows, size)]


def _logits_of_negatives(own: Tensor, columns: Tensor, image: Tensor, B: int, temperature: float) -> Tensor:
    """Logits of the rows (R, P) of the images (R,): (R, V B), minus infinity for views of the same image."""
    logits = own / temperature @ columns.T
    same_image = image[:, None] + torch.arange(0, len(columns), B, device=own.device)  # (R, V)
    return logits.scatter_(1, same_image, -torch.inf)
