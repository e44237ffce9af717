"""What a method is, and what several of them share: heads, float32 losses, pairs of views, EMA targets, queues.

Shapes: V views, B images, D embedding, P projection, K rows of a queue.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import FlopCounterMode

from crlf.errors import InputError

LOGITS = 2**24  # at most this many at a time, 64 MB in float32
WIDTH = (1, 65536)  # of a layer; the limits of a setting
TEMPERATURE = (1e-3, 100)
SHARE = (0, 1)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Method(nn.Module, ABC):
    """An encoder in training: it owns what else the paper needs (projector, predictor, target, queue).

    A subclass has a `Settings` dataclass and takes `(encoder, settings)`. It never sees labels. It says in two parts
    what it does: all that has weights is in `project`, and what compares images with each other is in `loss`. Between
    them `crlf.training.gradients` puts together what several processes, or several parts of a large batch, have
    projected. What pages, figures and checks must know of it are attributes of its class.
    """

    title: ClassVar[str] = ""
    """Its name as its authors write it."""
    paper: ClassVar[str] = ""
    """Authors and year, and the address."""
    gist: ClassVar[str] = ""
    """What it does, in half a sentence."""
    needs: ClassVar[str] = ""
    """What it takes to do that."""
    loss_name: ClassVar[str] = ""
    """What the paper calls its loss, if anything."""
    loss_falls: ClassVar[bool] = False
    """Whether a loss that does not fall is a fault. That of a method whose targets move may rise while it learns."""
    Settings: type[Any]
    encoder: nn.Module

    @abstractmethod
    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Two or more views, each float (B, C, h, w) -> what the loss compares, each float (V, B, ...).

        All views go through the encoder in one pass, so that batch norm sees them together, where most papers' code
        passes one view at a time.
        """

    @abstractmethod
    def loss(self, *projections: Any, **labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What `project` gave of all images of a batch -> the scalar loss, and detached scalars for the log."""

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch: views, each float (B, C, h, w)."""
        return self.loss(*self.project(views))

    @staticmethod
    def candidates(views: int, batch: int) -> int | None:
        """Among how many a view looks for another of its image: an untrained encoder's loss is the log of it.

        None where the loss is no such choice, or the number depends on more.
        """
        return None

    def meet(self, images: int) -> None:
        """Called once before the first step, with how many images there are to learn from; it may make weights."""

    def after_step(self, progress: float) -> None:
        """Called after the optimizer, with the share of the steps done; for targets that follow the weights."""


class SupervisedMethod(Method):
    """The exception: a method that is given the labels of its batch. What it learns is not learned without labels.

    Its `loss` takes int64 (B,) labels behind the projections, by that name.
    """

    def forward(self, views: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As `Method.forward`."""
        return self.loss(*self.project(views), labels=labels)


class IndexedMethod(Method):
    """A method that is told which images stand in its batch.

    Its `loss` takes int64 (B,) rows behind the projections, by that name: the numbers of the images among all.
    """

    def forward(self, views: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As `Method.forward`."""
        return self.loss(*self.project(views), rows=rows)


class TaughtMethod(IndexedMethod):
    """A method that learns from a frozen teacher, whose features of every image are known beforehand.

    Its `Settings` have `teacher` and `teacher_size`, see crlf.training.teaching, which makes the features.
    """

    features: Tensor

    @abstractmethod
    def learn_from(self, features: Tensor) -> None:
        """Called once before the first step, with the features of all images, float32 (N, T); it may make weights."""


def loss_of(method: Method, views: Sequence[Tensor], told: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """A method's loss of a whole batch: views, each float (B, C, h, w), and int64 (B,)."""
    return compare(method, method.project(views), told)


def compare(method: Method, projections: Sequence[Tensor], told: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """A method's loss. What it is told of the batch is its labels for a `SupervisedMethod` alone, and its rows for an
    `IndexedMethod`: the one place where they meet."""
    if isinstance(method, SupervisedMethod):
        assert told is not None, "a supervised method needs labels"
        return method.loss(*projections, labels=told)
    if isinstance(method, IndexedMethod):
        assert told is not None, "a method that knows its images needs their rows"
        return method.loss(*projections, rows=told)
    return method.loss(*projections)


def training_flops(method: Method, views: int, channels: int, height: int, width: int, forwards: int = 1) -> float:
    """Floating-point operations that a view costs in training, two for each multiply-add.

    Torch counts one forward pass; elementwise operations, norms and pools are not in it. A backward pass costs two
    forwards, and a `Target` has none. A batch in parts goes forward twice (crlf.training.gradients).
    """
    method = copy.deepcopy(method).eval().requires_grad_(False)  # else a parameter as an input (CaiT) ends it
    device = next(method.parameters()).device
    pair = torch.zeros(2, channels, height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss_of(method, [pair] * views, torch.arange(2, device=device))
    target = sum(counter.get_flop_counts().get(Target.__name__, {}).values())
    return ((2 + forwards) * counter.get_total_flops() - 2 * target) / (2 * views)


def require(settings: object, **limits: tuple[float, float]) -> None:
    """Raise InputError for the first of these settings that is not within its limits, both included."""
    for name, (low, high) in limits.items():
        if not low <= getattr(settings, name) <= high:
            raise InputError(f"{name} must be in {low}..{high}, not {getattr(settings, name)}")


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def mlp(
    sizes: Sequence[int],
    *,
    norm: bool = True,
    activation: Callable[[], nn.Module] = relu,
    bias: bool = True,
    last_norm: bool = False,
) -> nn.Sequential:
    """Linear, batch norm and activation between the given sizes; the last layer is Linear alone.

    Args:
        norm: batch norm after each hidden layer.
        bias: of the last layer. Nothing can be learned by one whose shift the loss, or a batch norm after it, undoes.
        last_norm: batch norm without weights after the last layer, which then has no bias.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=not norm), *[nn.BatchNorm1d(fan_out)] * norm, activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=bias and not last_norm))
    return nn.Sequential(*layers, *[nn.BatchNorm1d(sizes[-1], affine=False)] * last_norm)


def by_view(rows: Tensor, views: Sequence[Tensor]) -> Tensor:
    """What came of all views in one pass, apart again: (V B, ...) -> (V, B, ...)."""
    return rows.unflatten(0, (len(views), -1))


def out_dim(encoder: nn.Module) -> int:
    """D, the width of the embedding."""
    return encoder.out_dim  # type: ignore[return-value]


def in_float32(loss: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function of tensors compute in float32: half precision is widened, autocast is off, float64 stays.

    A bfloat16 has three digits; a logit of 10 is then off by 0.03, and a covariance of a batch by more than it is.
    """

    @functools.wraps(loss)
    def wide(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        device = next(a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        widened: Any = [_widen(a) for a in args]
        with torch.autocast(device, enabled=False):
            return loss(*widened, **{name: _widen(a) for name, a in kwargs.items()})  # type: ignore[arg-type]

    return wide


def _widen(value: object) -> object:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value  # type: ignore[attr-defined]


@in_float32
def unit(z: Tensor) -> Tensor:
    """Rows of length 1: float (..., P) -> float32 (..., P)."""
    return F.normalize(z, dim=-1)


@in_float32
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each row of one with each of the other: float (..., M, P) and (N, P) -> float32 (..., M, N)."""
    return unit(a) @ unit(b).T


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """How far from collapse: the standard deviation of normalised features, averaged over P, times the root of P.

    float (..., P) -> a scalar in 0..1: 1 when the features point everywhere alike, 0 when all are equal (Chen and He
    2021, SimSiam, figure 2).
    """
    return unit(z.detach()).flatten(0, -2).std(dim=0).mean() * math.sqrt(z.size(-1))


def over_pairs(
    loss: Callable[[Tensor, Tensor], Tensor], a: Sequence[Tensor] | Tensor, b: Sequence[Tensor] | Tensor
) -> Tensor:
    """The mean of loss(a[i], b[j]) over the ordered pairs of different views; with two views, of both directions."""
    return torch.stack([loss(a[i], b[j]) for i, j in permutations(range(len(a)), 2)]).mean()


@in_float32
def over_negatives(z: Tensor, temperature: float, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean over all ordered pairs of two views of the same image of a loss of positive and negatives.

    The negatives of a pair are the V (B - 1) views of other images; a third view of the same image is in neither.

    Args:
        z: float (V, B, P), V and B at least 2; need not be normalised.
        loss: of the positives' logits (V B, V - 1) and the log of the sum of the negatives' exponentials (V B, 1).

    Raises:
        InputError: B is 1.
    """
    B = z.shape[1]
    if B < 2:
        raise InputError(f"NT-Xent needs at least 2 images in a batch, not {B}: the others are the negatives")
    z = F.normalize(z, dim=2)
    positives = _other_views(z).flatten(0, 1) / temperature  # (V B, V - 1)
    negatives: Tensor = LogSumExpOfNegatives.apply(z.flatten(0, 1), B, temperature)
    return loss(positives, negatives).mean()


def _other_views(z: Tensor) -> Tensor:
    """The cosine of each view with every other one of the same image: unit rows (V, B, P) -> (V, B, V - 1)."""
    view = torch.arange(len(z), device=z.device)
    others = view[:-1] + (view[:-1] >= view[:, None])  # (V, V - 1)
    return torch.einsum("vbp,wbp->vbw", z, z).gather(2, others[:, None].expand(-1, z.shape[1], -1))


class LogSumExpOfNegatives(torch.autograd.Function):
    """Of the logits with the views of other images: unit rows (V B, P), B and a temperature -> (V B, 1).

    At most `LOGITS` logits are there at a time: when these are all, they are kept for the gradient, and otherwise made
    once more, so that memory grows with V B and not with its square. Cosines are symmetric: row i of z meets row j in
    logit ij and in logit ji, so the gradient of row i is complete when the i-th row of logits is there. That saves a
    product, and any sum over blocks.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, B: int, temperature: float) -> Tensor:
        blocks = _blocks(len(z))
        found, softmax = z.new_empty(len(z), 1), None
        for rows in blocks:
            logits = _logits_of_negatives(z, rows, B, temperature)
            highest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(highest).exp_()
            total = exponentials.sum(dim=1, keepdim=True)
            found[rows] = total.log() + highest
            if len(blocks) == 1:
                softmax = exponentials.div_(total)
        ctx.save_for_backward(z, found, softmax)
        ctx.B, ctx.temperature = B, temperature
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, found, softmax = ctx.saved_tensors
        if softmax is not None:
            weights = softmax * grad  # of logit ij
            return (weights + weights.T) @ z / ctx.temperature, None, None
        grad_z = torch.empty_like(z)
        for rows in _blocks(len(z)):
            logits = _logits_of_negatives(z, rows, ctx.B, ctx.temperature)  # (R, V B)
            weights = (logits - found.T).exp_().mul_(grad.T)  # of logit ji
            weights += logits.sub_(found[rows]).exp_().mul_(grad[rows])  # of logit ij
            grad_z[rows] = weights @ z / ctx.temperature
        return grad_z, None, None


def _blocks(count: int) -> list[slice]:
    """Rows in blocks of at most `LOGITS` logits."""
    size = max(1, LOGITS // count)
    return [slice(first, first + size) for first in range(0, count, size)]


def _logits_of_negatives(z: Tensor, rows: slice, B: int, temperature: float) -> Tensor:
    """(R, V B); minus infinity among the views of the same image."""
    logits = z[rows] / temperature @ z.T
    image = torch.arange(len(z), device=z.device)[rows, None] % B
    same_image = image + torch.arange(0, len(z), B, device=z.device)  # (R, V)
    return logits.scatter_(1, same_image, -torch.inf)


def cosine_momentum(progress: float, start: float, end: float) -> float:
    """From start to end along half a cosine (Grill et al. 2020, BYOL, section 3.3), at a progress in 0..1."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class Target(nn.Module):
    """A copy of networks, in a row, that follows their weights as an exponential moving average; no gradient enters it.

    Its batch norms normalise by, and remember, its own batches; only weights follow.

    Args:
        start, end: the momentum of the average at the first and the last step.
    """

    def __init__(self, *networks: nn.Module, start: float, end: float):
        super().__init__()
        self.networks = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)
        self.start, self.end = start, end

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Views, each float (B, C, h, w) -> (V, B, P), in one pass."""
        return by_view(self.networks(torch.cat(list(views))), views)

    @torch.no_grad()
    def follow(self, *networks: nn.Module, progress: float) -> None:
        """weights <- momentum weights + (1 - momentum) those of the networks, after a share of the steps."""
        momentum = cosine_momentum(progress, self.start, self.end)
        mine: list[Tensor] = list(self.networks.parameters())
        theirs: list[Tensor] = list(nn.Sequential(*networks).parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)


class Queue(nn.Module):
    """The last K rows that were pushed, newest first; at the start random directions.

    A push replaces the tensor and leaves the old one as it was, since a loss may still need it for its backward pass.
    """

    rows: Tensor

    def __init__(self, length: int, width: int):
        super().__init__()
        self.register_buffer("rows", unit(torch.randn(length, width)))  # (K, P)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put float (R, P) before the others, normalised; the oldest leave. Only in training mode."""
        if self.training:
            room = len(self.rows)
            new = unit(rows.detach())[:room].to(self.rows.dtype)
            self.rows = torch.cat([new, self.rows[: room - len(new)]])
