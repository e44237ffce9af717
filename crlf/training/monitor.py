"""What is looked at while a run trains, now and then: whether its features are sound, and kNN on a sample.

Whether they are sound is told without a label (crlf.metrics.geometry). kNN is asked on a sample of the training images,
whose labels nothing else of the run is given. It tells how training goes, not how good the encoder is: the sample is
small, the encoder is taken without the regions and mirror images of `crlf embed`, and the images that are asked about
were trained on, if without their labels. Test images that are held out stay unseen for `crlf probe`.

Shapes: N training images, n of the sample that vote and m that are asked about, D embedding, P projection.
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
from crlf.recipe import Recipe
from crlf.runs.payoff import OF_TRAINED
from crlf.runs.run import Run
from crlf.runtime import distributed
from crlf.runtime.seeding import generator
from crlf.text import percent

SAMPLE = 512  # images, of which two views each are embedded
FEWEST = 128  # of these in a short run
SHARE = 0.02  # of the training time that measuring them may take, after the first epoch's

VOTERS, ASKED = 2000, 1000  # images of kNN
FEWEST_VOTERS = 400  # in a short run, and half as many that are asked about
LEAST = 20  # images asked about; fewer say nothing
KNN_BATCH = 500
KNN_SHARE = 0.015  # of the training time that kNN may take, after the first look

LOST = 0.5  # of the RankMe that trained weights came with
POINTS = 8  # looks in a run, where they fit in these shares
APART = 8  # steps, at least, between two of them
STEP = 3  # a step takes so long as the forward pass of its views, about


# The features


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The length of the gradient of all parameters together, a scalar; those without one do not count."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def measure(
    method: Method, images: Tensor, make_view: Callable[..., Tensor], stream: torch.Generator, batch: int = SAMPLE
) -> dict[str, float]:
    """Every measure of the embeddings h and, where the method has a projector, of its projections z, as `h_rankme`, ….

    Of h, which is what is kept, the rank matters; of z, which is what the loss compares, alignment, uniformity and
    spread. Nothing of the method changes.

    Args:
        images: uint8 (N, C, H, W), on the method's device; two or more.
        make_view: as `crlf.augmentation.Views`.
        stream: what the views are drawn from.
        batch: images at a time; they decide which views are drawn.
    """
    return {k: v for k, v in examine(method, images, make_view, stream, batch).items() if isinstance(v, float)}


def examine(
    method: Method, images: Tensor, make_view: Callable[..., Tensor], stream: torch.Generator, batch: int
) -> dict[str, Any]:
    """As `measure`, and what is more than a number: `h_spectrum`, see `spectrum`, and `positive_histogram` and
    `negative_histogram` of the cosines of what the loss compares, see `similarities`."""
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
    """{"h": float32 (2, N, D), "z": float32 (2, N, P)}: two views of each image, in evaluation mode; see `measure`."""
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
    """Evaluation mode, and afterwards each part's own again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def affordable(spent: float, last: float, most: float, seconds: float, progress: float | None) -> bool:
    """Whether there is time for another look.

    Args:
        spent: seconds that looking took so far; the first look is always taken.
        last: seconds that the last look took.
        most: share of the training time that looking may take.
        seconds: of training so far.
        progress: share of the run that is done, at one of its `POINTS`, whose time is given in advance; the last one is
            always taken. None for a look in between.
    """
    if progress is None:
        return not spent or spent + last <= most * seconds
    return not spent or progress >= 1 or spent + last <= most * (seconds + seconds / progress / POINTS)


def fitting(most: float, views: float) -> int:
    """Images in each of the `POINTS` looks at a run of so many views, if all of them take this share of its time."""
    return int(min(most * STEP * views / POINTS, 2**62))


class Points:
    """When the features are looked at: `POINTS` times in a run, however few its epochs are."""

    def __init__(self, step: int, share: float):
        self.step, self.count = step, int(POINTS * share)

    def passed(self, step: int, share: float, last: bool) -> bool:
        """Whether it is time after this step, which is the last of an epoch or not, and this share of the run."""
        if int(POINTS * share) <= self.count or (not last and step - self.step < APART):
            return False
        self.step, self.count = step, int(POINTS * share)
        return True


class Watch:
    """Measures a run's method now and then, on one sample of its training images, and says once when it collapses.

    Args:
        pixels: the training images, uint8 (N, C, H, W), anywhere.
        device: the method's.
    """

    def __init__(self, recipe: Recipe, pixels: Tensor, device: torch.device | str = "cpu"):
        order = torch.randperm(len(pixels), generator=generator("cpu", "health", recipe.seed))
        self.recipe = recipe
        self.images = pixels[order[:SAMPLE].to(pixels.device)].to(device)  # not the first: those may be of one class
        self.make_view = Views(recipe.augmentation, recipe.normalisation)
        self.seconds = self.last = 0.0  # that looking took
        self.judged = False
        self.collapse: Collapse | None = None  # what was found, for good
        self.before: Method | None = None  # with the trained weights that it starts from
        self.begun: float | None = None  # its RankMe
        self.fell = False

    def start(self, method: Method) -> None:
        """Hold what follows against the embeddings of now, whose weights are trained ones."""
        self.before = copy.deepcopy(method)

    def look(self, method: Method, step: int, seconds: float, progress: float | None = None) -> dict[str, Any]:
        """What the log shall hold, see `examine`.

        Nothing when another look would take more than `SHARE` of the time, see `affordable`. The first look after
        `SETTLED` steps, from where on a collapse is one, is always taken.
        """
        if distributed.rank() > 0:
            return {}  # all processes have the same weights: the first one looks
        settled = step >= SETTLED
        needed = settled and not self.judged
        if not needed and not affordable(self.seconds, self.last, SHARE, seconds, progress):
            return {}
        if progress and not self.seconds:  # of a short run fewer images, so that it has as many points
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
        """Say once that trained weights have lost half of their dimensions; no labels are needed to see that."""
        if self.begun is None or self.fell or rank >= LOST * self.begun:
            return
        self.fell = True
        fell = f"RankMe fell from {self.begun:.0f}, of the weights it started from, to {rank:.0f} dimensions in use"
        tqdm.write(f"warning: {fell}. Try: {OF_TRAINED}.", file=sys.stderr)

    def judge(self, found: Collapse | None) -> None:
        """Say a collapse, once; a run that it stops says it in its last line."""
        if found and not self.collapse:
            self.collapse = found
            if not self.recipe.stop_on_collapse:
                tqdm.write(f"warning: {found}", file=sys.stderr)

    def stop(self, run: Run) -> None:
        """Raise InputError when the run has collapsed and is to stop then."""
        if self.recipe.stop_on_collapse and distributed.highest(self.collapse is not None) == [1]:  # all processes end
            raise InputError(f"{self.collapse}; stopped, and the checkpoint is in {str(run.path)!r}")


# kNN


class KnnCurve:
    """The accuracy of kNN on one sample, now and then.

    Args:
        images: uint8 (N, C, H, W), in memory or mapped; the sample is read when it is looked at.
        labels: int64 (n + m,), of the sample alone.
        rows: int64 (n + m,), where the sample lies: first those that vote.
        asked: m.
        device: the encoder's.
    """

    def __init__(
        self, recipe: Recipe, images: Tensor, labels: Tensor, rows: Tensor, asked: int, device: torch.device | str
    ):
        self.recipe, self.device = recipe, device
        self.images, self.labels, self.rows = images, labels.numpy(), rows
        self.voters = len(rows) - asked
        self.seconds = self.last = 0.0  # that looking took
        self.before: nn.Module | None = None  # the encoder with the trained weights that it starts from
        self.begun: float | None = None  # its accuracy
        self.fell = False

    @property
    def protocol(self) -> str:
        asked = len(self.rows) - self.voters
        return (
            f"kNN while it trains: {self.voters:,} training images vote on {asked:,} others (k = {HEADLINE}, cosine); "
            "their labels are for this evaluation only"
        )

    def shorten(self, voters: int) -> None:
        """Take the first of those that vote, and as large a share of those that are asked about."""
        if voters < self.voters:
            asked = round((len(self.rows) - self.voters) * voters / self.voters)
            kept = torch.cat([torch.arange(voters), torch.arange(self.voters, self.voters + asked)])
            self.rows, self.labels, self.voters = self.rows[kept], self.labels[kept.numpy()], voters

    def start(self, encoder: nn.Module) -> None:
        """Hold what follows against this encoder, whose weights are trained ones."""
        self.before = copy.deepcopy(encoder)

    def look(self, encoder: nn.Module, seconds: float, step: int = 0, progress: float | None = None) -> dict[str, Any]:
        """What the log shall hold: `knn_accuracy`, 0..1, and its protocol. Nothing of the encoder changes.

        Nothing when another look would take more than `KNN_SHARE` of the time, see `affordable`; the first says on the
        terminal what it is.
        """
        if distributed.rank() > 0 or not affordable(self.seconds, self.last, KNN_SHARE, seconds, progress):
            return {}  # all processes have the same weights: the first one looks
        if not self.seconds:
            if progress:  # of a short run fewer images, so that it has as many points
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
        """0..1, of the sample's images that are asked about."""
        rows, n = self.embed(encoder), self.voters
        found = knn_predict(rows[:n].numpy(), self.labels[:n], rows[n:].numpy(), HEADLINE)
        return float((found == self.labels[n:]).mean())

    def hold(self, accuracy: float) -> None:
        """Say once that trained weights have become worse, by more than two standard errors of the difference."""
        if self.begun is None or self.fell:
            return
        asked = len(self.rows) - self.voters
        error = math.sqrt((self.begun * (1 - self.begun) + accuracy * (1 - accuracy)) / asked)
        if accuracy < self.begun - 2 * error:
            self.fell = True
            fell = f"kNN fell from {percent(self.begun)}, of the weights it started from, to {percent(accuracy)}"
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
    """The evaluation of a run, or None where there is nothing to tell.

    That is so without labels, with less than `LEAST` images to ask about, with one class, and when the method is
    supervised: it has learned the labels that would be asked for.
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
