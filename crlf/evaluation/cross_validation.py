"""Every image tested, where there are too few to hold some out: fold by fold, by what was fitted on the other folds.

Shapes: N images, D embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crlf.evaluation.logistic_regression import Linear, choose_c, fit_linear

FOLDS = 5


def same(rows: np.ndarray) -> np.ndarray:
    """A number for each image that its copies share, float32 (N, D) -> int64 (N,): copies have the same embedding.

    It is the row of the first of them. So images without copies have their own, whatever the encoder, and the folds of
    two encoders are the same.

    Where there are fewer embeddings than folds, an encoder has collapsed, and nothing is taken for a copy.
    """
    whole = np.ascontiguousarray(rows).view(f"V{rows.itemsize * rows.shape[1]}").ravel()
    found, first, groups = np.unique(whole, return_index=True, return_inverse=True)
    return first[groups.reshape(-1)].astype(np.int64) if len(found) >= FOLDS else np.arange(len(rows))


def folds_of(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """The fold of each image: int64 (N,), 0..FOLDS - 1, about as many of each class in each fold.

    Copies of one image stand in one fold, so that none is tested by a fit that saw it.

    Args:
        labels: int (N,).
        groups: int (N,), the same for copies.
    """
    random, folds, next_fold = np.random.default_rng(seed), np.full(len(labels), -1), 0
    for label in np.unique(labels):
        for group in random.permutation(np.unique(groups[labels == label])):
            members = groups == group
            if folds[members][0] < 0:  # copies in two classes were placed with the first
                folds[members] = next_fold % FOLDS
                next_fold += 1
    return folds


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """Linear probes, one a fold, fitted on the other folds; row i of what they are asked is always image i."""

    folds: np.ndarray  # int64 (N,)
    models: tuple[Linear, ...]

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float32 (N, D) -> float32 (N, K)."""
        width = max(1 + int(model.classes.max()) for model in self.models)
        found = np.zeros((len(x), width), dtype=np.float32)
        for fold, model in enumerate(self.models):
            here = self.folds == fold
            own = model.probabilities(x[here])
            found[here, : own.shape[1]] = own
        return found

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float32 (N, D) -> int64 (N,)."""
        found = np.empty(len(x), dtype=np.int64)
        for fold, model in enumerate(self.models):
            found[self.folds == fold] = model.predict(x[self.folds == fold])
        return found


def fit(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[CrossValidated, str]:
    """A linear probe for each fold, whose C is chosen without that fold; and how, in words."""
    models, chosen = [], []
    for fold in range(int(folds.max()) + 1):
        rest = folds != fold
        choice = choose_c(x[rest], y[rest])
        models.append(fit_linear(x[rest], y[rest], choice.c, choice.model))
        chosen.append(choice.c)
    strengths = " to ".join(f"{c:.2g}" for c in sorted({min(chosen), max(chosen)}))
    return CrossValidated(folds, tuple(models)), f"C = {strengths}, chosen in each fold's training images"
