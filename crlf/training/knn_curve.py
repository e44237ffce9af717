"""kNN during training, on a sample of the training images.

Nothing else in the run sees their labels. It shows how training progresses, not how good the encoder is: the sample is
small, the encoder is used without the regions and mirror images of `crlf embed`, and it was trained on the queries,
though without labels. `crlf probe` uses held-out test images.

Shapes: n voters and m queries of the sample, D embedding.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crlf.data import ImageSet
from crlf.data.encoded import Pixels
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.metrics.knn import HEADLINE, knn_predict
from crlf.normalisation import normalise
from crlf.recipe import Recipe
from crlf.runs.payoff import OF_TRAINED
from crlf.runtime import distributed
from crlf.runtime.seeding import generator
from crlf.text import percent
from crlf.training.monitor import affordable, evaluating, fitting

VOTERS, ASKED = 2000, 1000  # images that vote in kNN, and images that are classified
FEWEST_VOTERS = 400  # in a short run, which classifies half as many
LEAST = 20  # images to classify; with fewer, kNN is left out
KNN_BATCH = 500
KNN_SHARE = 0.015  # of the training time that kNN may take, after the first evaluation


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
