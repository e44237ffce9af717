"""Cross-validation of the linear probe, for sets too small to hold out test images.

Shapes: N images, D embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crlf.evaluation.logistic_regression import Linear, choose_c, fit_linear

FOLDS = 5


def same(rows: np.ndarray) -> np.ndarray:
    """A group for each image, shared by its copies: float32 (N, D) -> int64 (N,). Copies have the same embedding.

    The group is the row of its first image, so for images without copies it does not depend on the encoder, and two
    encoders get the same folds. If there are fewer distinct embeddings than folds, the encoder has collapsed, and each
    image is its own group.
    """
    whole = np.ascontiguousarray(rows).view(f"V{rows.itemsize * rows.shape[1]}").ravel()
    found, first, groups = np.unique(whole, return_index=True, return_inverse=True)
    return first[groups.reshape(-1)].astype(np.int64) if len(found) >= FOLDS else np.arange(len(rows))


def folds_of(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """The fold of each image: int64 (N,), in 0..FOLDS - 1, with about as many images of each class in each fold.

    Copies of an image are in the same fold, so that no image is tested by a model that was fitted on a copy.

    Args:
        labels: int (N,).
        groups: int (N,), the same for copies.
        seed: seed of the folds.
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
    """Linear probes, one per fold, each fitted on the other folds. Inputs must have row i for image i."""

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
    """Fit a linear probe for each fold, with C chosen without that fold; returns the probes and the protocol."""
    models, chosen = [], []
    for fold in range(int(folds.max()) + 1):
        rest = folds != fold
        choice = choose_c(x[rest], y[rest])
        models.append(fit_linear(x[rest], y[rest], choice.c, choice.model))
        chosen.append(choice.c)
    strengths = " to ".join(f"{c:.2g}" for c in sorted({min(chosen), max(chosen)}))
    return CrossValidated(folds, tuple(models)), f"C = {strengths}, chosen in each fold's training images"
