"""What a probe measures, and what it finds."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crlf.data import ImageSet, first_of, load
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
    """What a probe found, and how: what goes to scores.json, and to files of the run."""

    scores: dict[str, Any]
    protocol: str
    files: dict[str, np.ndarray] = {}  # noqa: RUF012, never changed


def splits_of(recipe: Recipe, data_dir: str | Path | None) -> tuple[ImageSet, ImageSet]:
    """The training and the test images that a run of this recipe embeds."""
    return first_of(*load(recipe.data, data_dir, recipe.images), recipe.subset)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of a run with their labels; its images and its encoder for the probes that need them."""

    train: np.ndarray  # float32 (N, D)
    train_lbl: np.ndarray  # int64 (N,)
    test: np.ndarray  # float32 (M, D)
    test_lbl: np.ndarray  # int64 (M,)
    run: Run | None = None
    data_dir: str | Path | None = None
    device: str = field(default="auto")
    folds: np.ndarray | None = None
    """int64 (N,), where the test images are the training images, and each is tested by what the other folds teach."""

    @functools.cached_property
    def linear(self) -> tuple[Linear | CrossValidated, str]:
        """The linear probe, and how its C was found; fitted once for all probes that ask for it."""
        if self.folds is not None:
            return cross_validation.fit(self.train, self.train_lbl, self.folds)
        return fit_chosen(self.train, self.train_lbl)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """What the linear probe says of the test images: int64 (M,)."""
        return self.linear[0].predict(self.test)

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """The nearest training images of each test image, by cosine; of a training image, others than itself and its
        copies."""
        if self.folds is not None:
            return nearest_others(self.train, self.train_lbl, cross_validation.same(self.train), max(KS))
        return nearest(self.train, self.train_lbl, self.test, min(max(KS), len(self.train)))

    @functools.cached_property
    def voted(self) -> np.ndarray:
        """What the `HEADLINE` nearest say of the test images: int64 (M,)."""
        classes = self.neighbours.classes
        return classes[vote(self.neighbours.labels[:, :HEADLINE], len(classes)).numpy()].astype(np.int64)

    @property
    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Training rows, and the test rows that they predict: all and all, or fold by fold."""
        if self.folds is None:
            return [(np.arange(len(self.train)), np.arange(len(self.test)))]
        return [(np.flatnonzero(self.folds != k), np.flatnonzero(self.folds == k)) for k in range(self.folds.max() + 1)]

    def split(self) -> Embedded:
        """The same with test images that are no training images, for what takes too long to be done fold by fold."""
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
    def images(self) -> tuple[Tensor, Tensor]:
        """The training and the test images that were embedded: uint8 (N, C, H, W), (M, C, H, W).

        Raises:
            InputError: they cannot be loaded, or are more or fewer than the embeddings.
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

    def embed(self, images: Tensor, encoder: torch.nn.Module | None = None) -> np.ndarray:
        """As the run embeds: uint8 (n, C, H, W) -> float32 (n, D)."""
        return embed_images(encoder or self.encoder, images, self.recipe.normalisation)

    def accuracy(self, predictions: np.ndarray) -> float:
        """int64 (M,) -> the share that is right."""
        return float((predictions == self.test_lbl).mean())
