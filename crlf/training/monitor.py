"""Measures the health of the features during training, without labels (crlf.metrics.geometry).

Shapes: N images of the sample, D embedding, P projection.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crlf.augmentation import Views
from crlf.data.encoded import Pixels
from crlf.errors import InputError
from crlf.methods.base import Method
from crlf.metrics.geometry import (
    SETTLED,
    Collapse,
    centred,
    describe,
    diagnose,
    histogram,
    similarities,
    singular_values,
    spectrum,
)
from crlf.optim import whole
from crlf.recipe import Recipe
from crlf.runs.payoff import OF_TRAINED
from crlf.runs.run import Run
from crlf.runtime import distributed
from crlf.runtime.seeding import generator

SAMPLE = 512  # images; two views of each are embedded
FEWEST = 128  # images in a short run
SHARE = 0.02  # of the training time that measuring may take, after the first measurement

LOST = 0.5  # of the initial RankMe; a run from trained weights that loses more is warned about
POINTS = 8  # evaluations in a run, where they fit in these shares
APART = 8  # steps, at least, between two evaluations
STEP = 3  # a step takes about this many times as long as the forward pass of its views


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the gradient of all parameters together, a scalar. Parameters without a gradient are left out."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return whole(norm)


def measure(
    method: Method, images: Tensor, make_view: Callable[..., Tensor], stream: torch.Generator, batch: int = SAMPLE
) -> dict[str, float]:
    """Every measure of the embeddings h and, if the method has a projector, of the projections z: `h_rankme`, ….

    For h, which is kept, the rank matters; for z, which the loss compares, alignment, uniformity and spread matter. The
    method does not change.

    Args:
        images: uint8 (N, C, H, W), on the method's device; two or more.
        make_view: makes the views, as `crlf.augmentation.Views` does.
        stream: the generator of the views.
        batch: images per batch; which views are drawn depends on it.
    """
    return {k: v for k, v in examine(method, images, make_view, stream, batch).items() if isinstance(v, float)}


def examine(
    method: Method, images: Tensor, make_view: Callable[..., Tensor], stream: torch.Generator, batch: int
) -> dict[str, Any]:
    """As `measure`, with three lists in addition: `h_spectrum`, see `spectrum`, and `positive_histogram` and
    `negative_histogram` of the cosines that the loss compares, see `similarities`."""
    pairs = embed_pairs(method, images, make_view, stream, batch)
    values = {name: singular_values(centred(a)) for name, (a, _) in pairs.items()}
    found: dict[str, Any] = {}
    for name, (a, b) in pairs.items():
        found |= {f"{name}_{key}": value for key, value in describe(a, b, values[name]).items()}
    positive, negative = similarities(*pairs["z" if "z" in pairs else "h"])
    found |= {"positive_histogram": histogram(positive), "negative_histogram": histogram(negative)}
    return found | {"h_spectrum": [round(value, 6) for value in spectrum(values["h"])]}


@torch.no_grad()
def embed_pairs(
    method: Method, images: Tensor, make_view: Callable[..., Tensor], stream: torch.Generator, batch: int
) -> dict[str, Tensor]:
    """Embed two views of each image in evaluation mode: {"h": float32 (2, N, D), "z": float32 (2, N, P)}."""
    projector = getattr(method, "projector", None)
    rows: list[Tensor] = []
    with evaluating(method):
        for part in images.split(batch):
            views = make_view(part, stream, 2)  # (2 B, C, h, w)
            rows.append(method.encoder(views).unflatten(0, (2, -1)))  # (2, B, D)
        h = torch.cat(rows, dim=1)
        z = {} if projector is None else {"z": projector(h.flatten(0, 1)).unflatten(0, (2, -1)).float()}
    return {"h": h.float(), **z}


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and afterwards restore the mode of each submodule."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def affordable(spent: float, last: float, most: float, seconds: float, progress: float | None) -> bool:
    """Whether there is time for another evaluation.

    Args:
        spent: seconds that evaluations took so far; the first one is always made.
        last: seconds that the last evaluation took.
        most: share of the training time that evaluations may take.
        seconds: training time so far.
        progress: share of the run that is done, at one of its `POINTS`, whose time is budgeted in advance; the last
            point is always evaluated. None for an evaluation in between.
    """
    if progress is None:
        return not spent or spent + last <= most * seconds
    return not spent or progress >= 1 or spent + last <= most * (seconds + seconds / progress / POINTS)


def fitting(most: float, views: float) -> int:
    """Images for each of the `POINTS` evaluations, if all of them take a share `most` of a run over `views` views."""
    return int(min(most * STEP * views / POINTS, 2**62))


class Points:
    """Decides when to evaluate the features: `POINTS` times in a run, even if it has fewer epochs."""

    def __init__(self, step: int, share: float):
        self.step, self.count = step, int(POINTS * share)

    def passed(self, step: int, share: float, last: bool) -> bool:
        """Whether to evaluate after this step, at this share of the run; `last`: the step ends an epoch."""
        if int(POINTS * share) <= self.count or (not last and step - self.step < APART):
            return False
        self.step, self.count = step, int(POINTS * share)
        return True


class Watch:
    """Measures the features of a method during training on a fixed sample of the images, and warns of a collapse once.

    Args:
        recipe: the settings of the run.
        pixels: the training images, uint8 (N, C, H, W), on any device.
        device: the device of the method.
    """

    def __init__(self, recipe: Recipe, pixels: Pixels, device: torch.device | str = "cpu"):
        order = torch.randperm(len(pixels), generator=generator("cpu", "health", recipe.seed))
        self.recipe = recipe
        self.images = pixels[order[:SAMPLE].to(pixels.device)].to(device)  # at random: the first may be of one class
        self.make_view = Views(recipe.augmentation, recipe.normalisation)
        self.seconds = self.last = 0.0  # time of all evaluations, and of the last one
        self.judged = False
        self.collapse: Collapse | None = None  # the first collapse found
        self.before: Method | None = None  # a copy with the trained weights that the run starts from
        self.begun: float | None = None  # RankMe of that copy
        self.fell = False

    def start(self, method: Method) -> None:
        """Keep the current method, which has trained weights, to compare later ones with."""
        self.before = copy.deepcopy(method)

    def look(self, method: Method, step: int, seconds: float, progress: float | None = None) -> dict[str, Any]:
        """The measures for the log, see `examine`.

        Empty if another evaluation would take more than `SHARE` of the time, see `affordable`. The first evaluation
        after `SETTLED` steps is always made; from there on a collapse is diagnosed.
        """
        if distributed.rank() > 0:
            return {}  # all processes have the same weights: the first one evaluates
        settled = step >= SETTLED
        needed = settled and not self.judged
        if not needed and not affordable(self.seconds, self.last, SHARE, seconds, progress):
            return {}
        if progress and not self.seconds:  # a short run uses fewer images, so that it has as many points
            views = step / progress * self.recipe.batch_size * self.recipe.views
            self.images = self.images[: max(FEWEST, fitting(SHARE, views) // 2)]
        start = time.perf_counter()
        if self.before is not None:
            self.begun, self.before = self.examined(self.before)["h_rankme"], None
        health = self.examined(method)
        self.last = time.perf_counter() - start
        self.seconds += self.last
        if settled:
            self.judged = True
            self.judge(diagnose(health))
        self.hold(health.get("h_rankme", math.inf))
        return health

    def examined(self, method: Method) -> dict[str, Any]:
        stream = generator(self.images.device, "health", self.recipe.seed, "views")
        return examine(method, self.images, self.make_view, stream, self.recipe.batch_size)

    def hold(self, rank: float) -> None:
        """Warn once if the features use less than half of the dimensions that the trained weights used."""
        if self.begun is None or self.fell or rank >= LOST * self.begun:
            return
        self.fell = True
        fell = f"RankMe (dimensions in use) fell from {self.begun:.0f} at the start to {rank:.0f}"
        tqdm.write(f"warning: {fell}. Try: {OF_TRAINED}.", file=sys.stderr)

    def judge(self, found: Collapse | None) -> None:
        """Warn of a collapse, once. A run that stops because of it says so in its last line."""
        if found and not self.collapse:
            self.collapse = found
            if not self.recipe.stop_on_collapse:
                tqdm.write(f"warning: {found}", file=sys.stderr)

    def stop(self, run: Run) -> None:
        """Raise InputError if the run has collapsed and its recipe asks to stop then."""
        if self.recipe.stop_on_collapse and distributed.highest(self.collapse is not None) == [1]:  # all processes end
            raise InputError(f"{self.collapse}; training stopped, the checkpoint is in {str(run.path)!r}")
