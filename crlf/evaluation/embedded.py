"""The input and the result of a probe."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from crlf.data import ImageSet, first_of, load
from crlf.data.encoded import Pixels
from crlf.embedding.embed import embed_images, load_encoder
from crlf.encoders import Frozen
from crlf.errors import InputError
from crlf.evaluation import cross_validation
from crlf.evaluation.cross_validation import CrossValidated
from crlf.evaluation.logistic_regression import Linear, fit_chosen
from crlf.metrics.knn import HEADLINE, KS, Neighbours, nearest, nearest_others, vote
from crlf.recipe import Recipe
from crlf.runs.run import Run
from crlf.runtime.devices import pick_device


class Found(NamedTuple):
    """The result of a probe: scores and protocol for scores.json, and arrays for files of the run."""

    scores: dict[str, Any]
    protocol: str
    files: dict[str, np.ndarray] = {}  # noqa: RUF012, never changed


def splits_of(recipe: Recipe, data_dir: str | Path | None) -> tuple[ImageSet, ImageSet]:
    """The training and test images that a run with this recipe embeds."""
    return first_of(*load(recipe.data, data_dir, recipe.images), recipe.subset)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of a run with their labels, and its images and encoder for the probes that need them."""

    train: np.ndarray  # float32 (N, D)
    train_lbl: np.ndarray  # int64 (N,)
    test: np.ndarray  # float32 (M, D)
    test_lbl: np.ndarray  # int64 (M,)
    run: Run | None = None
    data_dir: str | Path | None = None
    device: str = field(default="auto")
    folds: np.ndarray | None = None
    """int64 (N,), the folds if all images are cross-validated: the test images are then the training images."""

    @functools.cached_property
    def linear(self) -> tuple[Linear | CrossValidated, str]:
        """The linear probe and how its C was chosen; fitted once for all probes."""
        if self.folds is not None:
            return cross_validation.fit(self.train, self.train_lbl, self.folds)
        return fit_chosen(self.train, self.train_lbl)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """The linear probe's predictions for the test images: int64 (M,)."""
        return self.linear[0].predict(self.test)

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """The nearest training images of each test image, by cosine. With folds, an image and its copies are left out
        of its own neighbours."""
        if self.folds is not None:
            return nearest_others(self.train, self.train_lbl, cross_validation.same(self.train), max(KS))
        return nearest(self.train, self.train_lbl, self.test, min(max(KS), len(self.train)))

    @functools.cached_property
    def voted(self) -> np.ndarray:
        """kNN predictions for the test images with k = `HEADLINE`: int64 (M,)."""
        classes = self.neighbours.classes
        return classes[vote(self.neighbours.labels[:, :HEADLINE], len(classes)).numpy()].astype(np.int64)

    @property
    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of training rows and the test rows that they predict: one pair with all rows, or one per fold."""
        if self.folds is None:
            return [(np.arange(len(self.train)), np.arange(len(self.test)))]
        return [(np.flatnonzero(self.folds != k), np.flatnonzero(self.folds == k)) for k in range(self.folds.max() + 1)]

    def split(self) -> Embedded:
        """A version with one fold as the test images, for probes that take too long to run on every fold."""
        if self.folds is None:
            return self
        rest, held = np.flatnonzero(self.folds != 0), np.flatnonzero(self.folds == 0)
        one = replace(
            self, train=self.train[rest], train_lbl=self.train_lbl[rest], test=self.test[held],
            test_lbl=self.test_lbl[held], folds=None,
        )  # fmt: skip
        train, _ = self.images
        one.__dict__["images"] = train[torch.from_numpy(rest)], train[torch.from_numpy(held)]
        return one

    def tested(self) -> str:
        """How the test images were chosen, for a protocol."""
        if self.folds is None:
            return f"{len(self.test):,} test images"
        return f"all {len(self.test):,} images, each by the {1 + int(self.folds.max())} − 1 other folds"

    @functools.cached_property
    def recipe(self) -> Recipe:
        assert self.run is not None
        return self.run.recipe

    @functools.cached_property
    def images(self) -> tuple[Pixels, Pixels]:
        """The training and the test images that were embedded: uint8 (N, C, H, W), (M, C, H, W).

        Raises:
            InputError: they cannot be loaded, or their number differs from that of the embeddings.
        """
        train, test = self.splits
        return train.images, test.images

    @functools.cached_property
    def splits(self) -> tuple[ImageSet, ImageSet]:
        train, test = splits_of(self.recipe, self.data_dir)
        for name, split, rows in (("train", train, self.train), ("test", test, self.test)):
            if len(split) != len(rows):
                raise InputError(
                    f"{name}_emb.npy must have a row for each of the {len(split):,} images, not {len(rows):,}"
                )
        return train, test

    @functools.cached_property
    def encoder(self) -> Frozen:
        """The frozen encoder, on the device."""
        assert self.run is not None
        return load_encoder(self.run, self.recipe, self.images[0].shape[1:]).to(pick_device(self.device))

    def embed(self, images: Pixels, encoder: torch.nn.Module | None = None) -> np.ndarray:
        """Embed images as the run does: uint8 (n, C, H, W) -> float32 (n, D)."""
        return embed_images(encoder or self.encoder, images, self.recipe.normalisation)

    def accuracy(self, predictions: np.ndarray) -> float:
        """The share of correct predictions, int64 (M,)."""
        return float((predictions == self.test_lbl).mean())
