"""Evaluations during training: the health of the features, and kNN on a sample.

The health of the features needs no labels (crlf.metrics.geometry). kNN uses a sample of the training images; nothing
else in the run sees their labels. It shows how training progresses, not how good the encoder is: the sample is small,
the encoder is used without the regions and mirror images of `crlf embed`, and the encoder was trained on the queries,
though without labels. Held-out test images stay unseen for `crlf probe`.

Shapes: N training images, n voters and m queries of the kNN sample, D embedding, P projection.
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
from crlf.data import ImageSet
from crlf.data.encoded import Pixels
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import Method, SupervisedMethod
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
from crlf.metrics.knn import HEADLINE, knn_predict
from crlf.normalisation import normalise
from crlf.optim import whole
from crlf.recipe import Recipe
from crlf.runs.payoff import OF_TRAINED
from crlf.runs.run import Run
from crlf.runtime import distributed
from crlf.runtime.seeding import generator
from crlf.text import percent

SAMPLE = 512  # images; two views of each are embedded
FEWEST = 128  # images in a short run
SHARE = 0.02  # of the training time that measuring may take, after the first measurement

VOTERS, ASKED = 2000, 1000  # images that vote in kNN, and images that are classified
FEWEST_VOTERS = 400  # in a short run, which classifies half as many
LEAST = 20  # images to classify; with fewer, kNN is left out
KNN_BATCH = 500
KNN_SHARE = 0.015  # of the training time that kNN may take, after the first evaluation

LOST = 0.5  # of the initial RankMe; a run from trained weights that loses more is warned about
POINTS = 8  # evaluations in a run, where they fit in these shares
APART = 8  # steps, at least, between two evaluations
STEP = 3  # a step takes about this many times as long as the forward pass of its views


# The features


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


# kNN


class KnnCurve:
    """Measures the accuracy of kNN on a fixed sample during training.

    Args:
        recipe: the settings of the run.
        images: uint8 (N, C, H, W), in memory or mapped; the sample is read at each evaluation.
        labels: int64 (n + m,), the labels of the sample alone.
        rows: int64 (n + m,), the rows of the sample, voters first.
        asked: m, the number of images that are classified.
        device: the device of the encoder.
    """

    def __init__(
        self, recipe: Recipe, images: Pixels, labels: Tensor, rows: Tensor, asked: int, device: torch.device | str
    ):
        self.recipe, self.device = recipe, device
        self.images, self.labels, self.rows = images, labels.numpy(), rows
        self.voters = len(rows) - asked
        self.seconds = self.last = 0.0  # time of all evaluations, and of the last one
        self.before: nn.Module | None = None  # a copy with the trained weights that the run starts from
        self.begun: float | None = None  # accuracy of that copy
        self.fell = False

    @property
    def protocol(self) -> str:
        asked = len(self.rows) - self.voters
        return (
            f"kNN during training: {self.voters:,} training images vote on {asked:,} others (k = {HEADLINE}, cosine); "
            "their labels are for this evaluation only"
        )

    def shorten(self, voters: int) -> None:
        """Keep the first `voters` voters, and the same share of the images that are classified."""
        if voters < self.voters:
            asked = round((len(self.rows) - self.voters) * voters / self.voters)
            kept = torch.cat([torch.arange(voters), torch.arange(self.voters, self.voters + asked)])
            self.rows, self.labels, self.voters = self.rows[kept], self.labels[kept.numpy()], voters

    def start(self, encoder: nn.Module) -> None:
        """Keep this encoder, which has trained weights, to compare later ones with."""
        self.before = copy.deepcopy(encoder)

    def look(self, encoder: nn.Module, seconds: float, step: int = 0, progress: float | None = None) -> dict[str, Any]:
        """The values for the log: `knn_accuracy`, in 0..1, and its protocol. The encoder does not change.

        Empty if another evaluation would take more than `KNN_SHARE` of the time, see `affordable`. The first call
        prints the protocol.
        """
        if distributed.rank() > 0 or not affordable(self.seconds, self.last, KNN_SHARE, seconds, progress):
            return {}  # all processes have the same weights: the first one evaluates
        if not self.seconds:
            if progress:  # a short run uses fewer images, so that it has as many points
                views = step / progress * self.recipe.batch_size * self.recipe.views
                self.shorten(max(FEWEST_VOTERS, 2 * fitting(KNN_SHARE, views) // 3))
            tqdm.write(self.protocol, file=sys.stderr)
        if self.before is not None:
            self.begun, self.before = self.accuracy(self.before), None
        start = time.perf_counter()
        accuracy = self.accuracy(encoder)
        self.last = time.perf_counter() - start
        self.seconds += self.last
        self.hold(accuracy)
        begun = {} if self.begun is None else {"knn_at_start": self.begun}
        return {"knn_accuracy": accuracy, **begun, "knn_protocol": self.protocol}

    def accuracy(self, encoder: nn.Module) -> float:
        """The accuracy on the sample's queries, in 0..1."""
        rows, n = self.embed(encoder), self.voters
        found = knn_predict(rows[:n].numpy(), self.labels[:n], rows[n:].numpy(), HEADLINE)
        return float((found == self.labels[n:]).mean())

    def hold(self, accuracy: float) -> None:
        """Warn once if kNN is worse than at the start by more than two standard errors of the difference."""
        if self.begun is None or self.fell:
            return
        asked = len(self.rows) - self.voters
        error = math.sqrt((self.begun * (1 - self.begun) + accuracy * (1 - accuracy)) / asked)
        if accuracy < self.begun - 2 * error:
            self.fell = True
            fell = f"kNN fell from {percent(self.begun)} at the start to {percent(accuracy)}"
            tqdm.write(f"warning: {fell}. Try: {OF_TRAINED}.", file=sys.stderr)

    @torch.no_grad()
    def embed(self, encoder: nn.Module) -> Tensor:
        """The sample's embeddings, in evaluation mode: float32 (n + m, D) on the CPU."""
        found = []
        with evaluating(encoder):
            for rows in self.rows.split(KNN_BATCH):
                part = self.images[rows].to(self.device)  # (b, C, H, W)
                found.append(encoder(normalise(part, self.recipe.normalisation)).float().cpu())
        return torch.cat(found)


def knn_curve(recipe: Recipe, data: ImageSet, device: torch.device | str) -> KnnCurve | None:
    """The kNN evaluation of a run, or None.

    It is None without labels, with fewer than `LEAST` images to classify, with a single class, and for supervised
    methods, which have learned the labels.
    """
    if data.labels is None or issubclass(METHODS[recipe.method], SupervisedMethod):
        return None
    order = torch.randperm(len(data), generator=generator("cpu", "knn", recipe.seed))
    asked = min(ASKED, len(data) // 3)
    rows = order[: min(VOTERS, len(data) - asked) + asked]
    labels = data.labels[rows]
    if asked < LEAST or len(labels[:-asked].unique()) < 2:
        return None
    return KnnCurve(recipe, data.images, labels, rows, asked, device)
