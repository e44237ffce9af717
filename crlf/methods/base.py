"""The base class of methods, and the parts that they share: heads, float32 losses, pairs of views, targets, queues.

Shapes: V views, B images, D embedding, P projection, K rows of a queue.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crlf.errors import InputError
from crlf.runtime.sharing import WHOLE, Share

WIDTH = (1, 65536)  # limits of the width of a layer
TEMPERATURE = (1e-3, 100)
SHARE = (0, 1)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Method(nn.Module, ABC):
    """A method in training: the encoder, and what else the paper needs (projector, predictor, target, queue).

    A subclass has a `Settings` dataclass and takes `(encoder, settings)`. It never sees labels. It has two parts:
    everything with weights is in `project`, and everything that compares images is in `loss`. Between the two,
    `crlf.training.gradients` joins the projections of the parts of a large batch. Class attributes hold what pages,
    figures and checks need to know.
    """

    title: ClassVar[str] = ""
    """Its name as the authors write it."""
    paper: ClassVar[str] = ""
    """Authors, year and address of the paper."""
    gist: ClassVar[str] = ""
    """The idea of the method, in half a sentence."""
    needs: ClassVar[str] = ""
    """The networks, batch or steps that it needs, in half a sentence."""
    loss_name: ClassVar[str] = ""
    """The name of the loss in the paper, if any."""
    loss_falls: ClassVar[bool] = False
    """Whether the loss should fall. With moving targets, a loss may rise although the method learns."""
    takes_local: ClassVar[bool] = False
    """Whether it accepts small views, which it compares with the large ones (Caron et al. 2020, SwAV, section 3.3)."""
    local_views: int = 0
    """The number of small views; they follow the large ones."""
    Settings: type[Any]
    encoder: nn.Module

    @abstractmethod
    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Project two or more views, each float (B, C, h, w), to what the loss compares, each float (V, B, ...).

        All views pass through the encoder together, so batch norm sees all of them; the code of most papers passes one
        view at a time.
        """

    @abstractmethod
    def loss(self, *projections: Any, **labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of the projections of a batch, and detached scalars for the log.

        With several processes, each computes a loss. If `loss` has an argument `share`, a `Share`, it receives the
        projections of this process's images alone and returns means over these images; `share` provides the rows of
        the others. The loss of the batch is the mean of the losses of all processes, weighted by their images. Without
        this argument, `loss` receives the projections of all images, and every process computes the same.
        """

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch: views, each float (B, C, h, w)."""
        return self.loss(*self.project(views))

    def large(self, views: Any) -> Any:
        """The large views of a sequence, or of a tensor (V, ...)."""
        return views[: len(views) - self.local_views]

    @staticmethod
    def candidates(views: int, batch: int) -> int | None:
        """The number of candidates among which a view must find its positive; the loss of an untrained encoder is the
        log of this number. None if the loss is not of this kind, or the number depends on other settings."""
        return None

    def meet(self, images: int) -> None:
        """Called once before the first step with the number of training images; may create weights."""

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the share of the run that is done; updates targets."""


class SupervisedMethod(Method):
    """A method that gets the labels of its batch, so it is supervised.

    Its `loss` takes `labels`, int64 (B,), after the projections.
    """

    def forward(self, views: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As `Method.forward`."""
        return self.loss(*self.project(views), labels=labels)


class IndexedMethod(Method):
    """A method that gets the indices of the images in its batch.

    Its `loss` takes `rows`, int64 (B,), after the projections: the indices of the images in the training set.
    """

    def forward(self, views: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """As `Method.forward`."""
        return self.loss(*self.project(views), rows=rows)


class TaughtMethod(IndexedMethod):
    """A method that learns from the features of a frozen teacher, which are computed before training.

    Its `Settings` have `teacher` and `teacher_size`, see crlf.training.teaching.
    """

    features: Tensor

    @abstractmethod
    def learn_from(self, features: Tensor) -> None:
        """Called once before the first step with the features of all images, float32 (N, T); may create weights."""


def loss_of(method: Method, views: Sequence[Tensor], told: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a whole batch: views, each float (B, C, h, w), and labels or indices, int64 (B,)."""
    return compare(method, method.project(views), told)


def compare(
    method: Method, projections: Sequence[Tensor], told: Tensor | None, share: Share = WHOLE
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of projections, in a process with this share of the batch, see `Method.loss`.

    `told` holds the labels for a `SupervisedMethod` and the indices for an `IndexedMethod`; this is the only place that
    passes them on.
    """
    more: dict[str, Any] = {}
    if not share.whole and shares(type(method)):
        more["share"] = share
    elif not share.whole:
        projections = [share.gather(rows, dim=1) for rows in projections]
        told = None if told is None else share.gather(told)
    if isinstance(method, SupervisedMethod):
        assert told is not None, "a supervised method needs labels"
        more["labels"] = told
    if isinstance(method, IndexedMethod):
        assert told is not None, "a method that knows its images needs their rows"
        more["rows"] = told
    return method.loss(*projections, **more)


@functools.cache
def shares(kind: type[Method]) -> bool:
    """Whether a method's loss is shared among processes: it then has an argument `share`."""
    return "share" in inspect.signature(kind.loss).parameters


def training_flops(
    method: Method,
    views: int,
    channels: int,
    height: int,
    width: int,
    forwards: int = 1,
    local: Sequence[int] = (0, 0),
) -> float:
    """Floating-point operations per view in training, where a multiply-add counts as two.

    It is the mean over all views of an image, small views included. torch counts one forward pass, without elementwise
    operations, norms and pools. A backward pass costs two forward passes; a `Target` has no backward pass.

    Args:
        method: the method; a copy is used.
        views: the number of large views of an image.
        channels, height, width: the size of a large view.
        forwards: forward passes in a step, 2 for a batch in parts (crlf.training.gradients).
        local: height and width of a small view.
    """
    method = copy.deepcopy(method).eval().requires_grad_(False)  # the counter fails on parameters as inputs (CaiT)
    device = next(method.parameters()).device
    pair, small = (torch.zeros(2, channels, *size, device=device) for size in ((height, width), local))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss_of(method, [pair] * views + [small] * method.local_views, torch.arange(2, device=device))
    target = sum(counter.get_flop_counts().get(Target.__name__, {}).values())
    return ((2 + forwards) * counter.get_total_flops() - 2 * target) / (2 * (views + method.local_views))


def require(settings: object, **limits: tuple[float, float]) -> None:
    """Raise InputError for the first setting outside of its limits (inclusive)."""
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
    """Linear layers of the given sizes, with batch norm and activation after each except the last.

    Args:
        sizes: the widths, from input to output.
        norm: whether batch norm follows each hidden layer.
        activation: makes the activation of the hidden layers.
        bias: whether the last layer has a bias; it has no effect if the loss or a later batch norm removes the mean.
        last_norm: whether batch norm without weights follows the last layer, which then has no bias.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=not norm), *[nn.BatchNorm1d(fan_out)] * norm, activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=bias and not last_norm))
    return nn.Sequential(*layers, *[nn.BatchNorm1d(sizes[-1], affine=False)] * last_norm)


def in_sizes(network: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Pass views through a network, consecutive views of one size together: each float (B, C, h, w) -> (V B, ...)."""
    ends = [i for i in range(1, len(views)) if views[i].shape != views[i - 1].shape]
    passes = [network(torch.cat(list(views[start:end]))) for start, end in pairwise([0, *ends, len(views)])]
    return torch.cat(passes) if ends else passes[0]


def by_view(rows: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Separate the views again after a joint pass: (V B, ...) -> (V, B, ...)."""
    return rows.unflatten(0, (len(views), -1))


def out_dim(encoder: nn.Module) -> int:
    """D, the width of the embedding."""
    return encoder.out_dim  # type: ignore[return-value]


def in_float32(loss: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function of tensors compute in float32: half precision is converted, autocast is off, float64 stays.

    bfloat16 has three digits: a logit of 10 is off by 0.03, and a covariance may be off by more than its value.
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
    """Scale rows to length 1: float (..., P) -> float32 (..., P)."""
    return F.normalize(z, dim=-1)


@in_float32
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine similarity of each pair of rows: float (..., M, P) and (N, P) -> float32 (..., M, N)."""
    return unit(a) @ unit(b).T


@torch.no_grad()
def spread(z: Tensor, share: Share = WHOLE) -> Tensor:
    """The standard deviation of normalised features, averaged over P, times the square root of P.

    float (..., P) -> a scalar in 0..1: 1 if the directions are uniform, 0 if all features are equal, that is, collapsed
    (Chen and He 2021, SimSiam, figure 2).
    """
    rows = unit(z.detach()).flatten(0, -2)
    deviation = rows.std(dim=0) if share.whole else variance(rows, share).sqrt()
    return deviation.mean() * math.sqrt(z.size(-1))


def variance(z: Tensor, share: Share = WHOLE, unbiased: bool = True) -> Tensor:
    """The variance of each feature over the rows of the whole batch: float (..., b, P) -> (..., P)."""
    if share.whole:
        return z.var(dim=-2, unbiased=unbiased)
    mean, within, count = z.mean(dim=-2), z.var(dim=-2, unbiased=False), share.count(z.shape[-2])
    biased = share.average(within + (mean - share.average(mean)).square())  # Chan et al. 1979: no cancellation
    return biased * count / (count - 1) if unbiased else biased


def over_pairs(
    loss: Callable[[Tensor, Tensor], Tensor], a: Sequence[Tensor] | Tensor, b: Sequence[Tensor] | Tensor
) -> Tensor:
    """The mean of loss(a[i], b[j]) over ordered pairs of different views; for two views, over both directions.

    b may hold fewer views than a: the first ones, which are large.
    """
    pairs = [(i, j) for i, j in product(range(len(a)), range(len(b))) if i != j]
    return torch.stack([loss(a[i], b[j]) for i, j in pairs]).mean()


def cosine_momentum(progress: float, start: float, end: float) -> float:
    """From start to end along half a cosine (Grill et al. 2020, BYOL, section 3.3), at a progress in 0..1."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class Target(nn.Module):
    """A copy of networks in sequence, whose weights are an exponential moving average of theirs, without gradient.

    Only the weights are averaged. Its batch norms use the statistics of its own batches.

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
        """Update the average: weights <- momentum * weights + (1 - momentum) * weights of the networks.

        Args:
            networks: the networks that were copied, in the same order.
            progress: the share of the steps that is done, in 0..1.
        """
        momentum = cosine_momentum(progress, self.start, self.end)
        mine: list[Tensor] = list(self.networks.parameters())
        theirs: list[Tensor] = list(nn.Sequential(*networks).parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)


class Queue(nn.Module):
    """The last K rows that were pushed, newest first; random directions at the start.

    A push replaces the tensor and does not change the old one, since a loss may need it for its backward pass.
    """

    rows: Tensor

    def __init__(self, length: int, width: int):
        super().__init__()
        self.register_buffer("rows", unit(torch.randn(length, width)))  # (K, P)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Normalise rows, float (R, P), put them first and drop the oldest. Does nothing in evaluation mode."""
        if self.training:
            room = len(self.rows)
            new = unit(rows.detach())[:room].to(self.rows.dtype)
            self.rows = torch.cat([new, self.rows[: room - len(new)]])
