"""Evaluation while a run trains: kNN on a sample of its training images, whose labels nothing else of the run is given.

It tells how training goes, not how good the encoder is: the sample is small, the encoder is taken without the regions
and mirror images of `crlf embed`, and the images that are asked about were trained on, if without their labels. The
test images stay unseen for `crlf probe`.

Shapes: N training images, n of the sample that vote and m that are asked about, D embedding.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crlf.augmentation import normalise
from crlf.data import ImageSet
from crlf.methods import METHODS
from crlf.methods.base import SupervisedMethod
from crlf.metrics.knn import HEADLINE, knn_predict
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.runtime.seeding import generator
from crlf.training.monitor import evaluating

VOTERS, ASKED = 2000, 1000  # images
LEAST = 20  # images asked about; fewer say nothing
BATCH = 500
SHARE = 0.01  # of the training time that measuring may take, after the first look


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
        self.settings, self.device = recipe.augmentation, device
        self.images, self.labels, self.rows = images, labels.numpy(), rows
        self.voters = len(rows) - asked
        self.seconds = self.last = 0.0  # that looking took
        self.protocol = (
            f"kNN while it trains: {self.voters:,} training images vote on {asked:,} others (k = {HEADLINE}, cosine); "
            "their labels are for this evaluation only"
        )

    def look(self, encoder: nn.Module, seconds: float) -> dict[str, Any]:
        """What the log shall hold: `knn_accuracy`, 0..1, and its protocol. Nothing of the encoder changes.

        Nothing when another look would take more than `SHARE` of the seconds of training so far; the first is always
        taken, and says on the terminal what it is.
        """
        if distributed.rank() > 0 or (self.seconds and self.seconds + self.last > SHARE * seconds):
            return {}  # all processes have the same weights: the first one looks
        if not self.seconds:
            tqdm.write(self.protocol, file=sys.stderr)
        start = time.perf_counter()
        rows, n = self.embed(encoder), self.voters
        found = knn_predict(rows[:n].numpy(), self.labels[:n], rows[n:].numpy(), HEADLINE)
        self.last = time.perf_counter() - start
        self.seconds += self.last
        return {"knn_accuracy": float((found == self.labels[n:]).mean()), "knn_protocol": self.protocol}

    @torch.no_grad()
    def embed(self, encoder: nn.Module) -> Tensor:
        """The sample's embeddings, in evaluation mode: float32 (n + m, D) on the CPU."""
        found = []
        with evaluating(encoder):
            for rows in self.rows.split(BATCH):
                part = self.images[rows].to(self.device)  # (b, C, H, W)
                found.append(encoder(normalise(part, self.settings)).float().cpu())
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
