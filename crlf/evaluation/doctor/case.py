"""The input and the findings of the doctor's checks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crlf.data import ImageSet
from crlf.errors import InputError
from crlf.evaluation.embedded import splits_of
from crlf.recipe import Recipe
from crlf.runs.run import LOSS, VIEWS, Run


class Finding(NamedTuple):
    """A possible cause of a low score."""

    name: str  # of the check in `crlf.evaluation.doctor.checks.CHECKS`
    what: str  # one line
    evidence: str  # numbers from the run
    advice: str  # what to try, with its flag


@dataclass(frozen=True, eq=False)
class Case:
    """A run, read once for all checks. Missing parts raise InputError, which names the command that makes them."""

    run: Run
    data_dir: str | Path | None = None

    @functools.cached_property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @functools.cached_property
    def health(self) -> dict[str, Any]:
        """The last row of the log that holds measures of the features."""
        needed = ("step", "h_spread", "h_agreement", "h_effective_rank", "h_dead")
        rows = [row for row in self.run.log() if all(isinstance(row.get(key), int | float) for key in needed)]
        if not rows:
            raise InputError("the log has no measures of the features, which `crlf pretrain` writes")
        return rows[-1]

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """The mean loss of each epoch, float64 (epochs,)."""
        losses = np.atleast_1d(self.run.array(LOSS))
        if losses.ndim != 1 or losses.dtype.kind != "f" or not len(losses) or not np.isfinite(losses).all():
            raise InputError(f"{LOSS} must hold finite numbers (epochs,), not {losses.dtype} {losses.shape}")
        return losses

    @functools.cached_property
    def view_shape(self) -> tuple[int, int]:
        """The channels of a view, and its shorter side in pixels."""
        shape = self.run.array(VIEWS).shape  # (n, 1 + V, C, h, w)
        if len(shape) != 5 or 0 in shape:
            raise InputError(f"{VIEWS} must be (n, 1 + V, C, h, w), not {shape}")
        return shape[2], min(shape[3:])

    @functools.cached_property
    def splits(self) -> tuple[ImageSet, ImageSet]:
        """The training and test images that were embedded."""
        return splits_of(self.recipe, self.data_dir)

    def rows(self, split: str) -> np.ndarray:
        """The embeddings of a split, float32 (N, D)."""
        rows = self.run.array(f"{split}_emb.npy")
        if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
            raise InputError(f"{split}_emb.npy must hold finite numbers (N, D), not {rows.dtype} {rows.shape}")
        return rows

    @functools.cached_property
    def train(self) -> np.ndarray:
        return self.rows("train")

    @functools.cached_property
    def test(self) -> np.ndarray:
        return self.rows("test")

    def labels(self, split: str) -> np.ndarray:
        """int64 (N,)."""
        if self.run.unlabelled:
            raise InputError("the images have no labels")
        return self.run.array(f"{split}_lbl.npy")
