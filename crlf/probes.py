"""Probes: what frozen embeddings are worth, measured with labels that training never saw.

Everything works on the embeddings in a run folder. An entry of `PROBES` is a function
`(train_emb, train_lbl, test_emb) -> Result`; no probe sees the test labels.

Shapes: N training and M test images, D embedding, K classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from crlf import runs
from crlf.devices import keep_freed_memory
from crlf.errors import InputError
from crlf.runs import Run

HELD_OUT = 0.1  # share of the training images that the regularisation is chosen on
STRENGTHS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # of the penalty, relative to the mean loss
BLOCK = 8192  # training images in a product of the linear probe
CHUNK_BYTES = 2**28  # what the similarities of one chunk of test images may take


class Result(NamedTuple):
    """What a probe predicts, and how it came to it."""

    predictions: np.ndarray  # int64 (M,)
    protocol: str
    probabilities: np.ndarray | None = None  # float32 (M, K), column k of label k; where the probe has them


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression on standardised features."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weights: Tensor  # (K, D)
    bias: Tensor  # (K,)
    classes: np.ndarray  # (K,) the labels

    def logits(self, x: np.ndarray) -> Tensor:
        """float32 (M, D) -> float32 (M, K)."""
        return (torch.from_numpy(x) - self.mean) / self.scale @ self.weights.T + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float32 (M, D) -> float32 (M, 1 + the largest label); a label that was not trained on has 0."""
        found = np.zeros((len(x), int(self.classes.max()) + 1), dtype=np.float32)
        found[:, self.classes] = self.logits(x).softmax(dim=1).numpy()
        return found

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float32 (M, D) -> int64 (M,)."""
        return self.classes[self.logits(x).argmax(dim=1).numpy()].astype(np.int64)


class Rotated(NamedTuple):
    """Images in coordinates along the axes of their features' covariance: what all fits on them share."""

    blocks: list[tuple[Tensor, Tensor]]  # float32 features (b, D) along the axes, and one-hot labels (b, K)
    variance: Tensor  # float64 (D,), along the axes
    axes: Tensor  # float64 (D, D), orthonormal columns
    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    classes: np.ndarray  # (K,)


def rotate(x: np.ndarray, y: np.ndarray) -> Rotated:
    """Standardise and rotate: float32 (N, D) and int (N,), at least two different labels."""
    features, mean, scale = standardise(torch.from_numpy(x))
    classes, places = np.unique(y, return_inverse=True)
    target = F.one_hot(torch.from_numpy(places.astype(np.int64)), len(classes)).float()  # (N, K)
    variance, axes = torch.linalg.eigh((features.T @ features / len(x)).double())
    blocks = list(zip((features @ axes.float()).split(BLOCK), target.split(BLOCK), strict=True))
    return Rotated(blocks, variance.clamp(min=0), axes, mean, scale, classes)


def fit_linear(x: np.ndarray, y: np.ndarray, c: float, start: Linear | None = None, tolerance: float = 1e-8) -> Linear:
    """Minimise scikit-learn's objective, C * sum of the log losses + ||W||^2 / 2, with L-BFGS.

    The features are standardised first (constant ones are only centred); the bias is not penalised. L-BFGS works in
    float64 on coordinates in which the curvature is about the same in all directions: along the eigenvectors of the
    features' covariance, scaled. Embeddings are so correlated that it takes a tenth of the steps there. Products are in
    float32.

    Args:
        x: float32 (N, D).
        y: int (N,), at least two different labels.
        c: C, the inverse of the penalty.
        start: where to start from, with the same classes and features of the same kind.
        tolerance: it ends when a step lowers the objective by less than this share.
    """
    return fit_rotated(rotate(x, y), 1 / (c * len(x)), start, tolerance)


def fit_rotated(images: Rotated, penalty: float, start: Linear | None, tolerance: float) -> Linear:
    """Minimise mean log loss + penalty * ||W||^2 / 2; the arguments as for `fit_linear`."""
    blocks, variance, axes, mean, scale, classes = images
    n, d, k = sum(len(rows) for rows, _ in blocks), len(variance), len(classes)
    stretch = (penalty + variance / k).rsqrt()  # (D,); weights = coordinates * stretch @ axes^T

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coordinates = torch.from_numpy(flat).view(k, d + 1)
        turned, bias = coordinates[:, :d] * stretch, coordinates[:, d]
        weights, shift = turned.float(), bias.float()
        loss, slope, total = 0.0, torch.zeros(k, d), torch.zeros(k)
        for rows, ones in blocks:  # a block stays in the cache between the two products
            logits = torch.addmm(shift, rows, weights.T).log_softmax(dim=1)  # (b, K)
            loss -= (logits * ones).sum().item()
            error = logits.exp_().sub_(ones)
            slope.addmm_(error.T, rows)
            total += error.sum(dim=0)
        slopes = (slope.double() / n + penalty * turned) * stretch
        gradient = torch.cat([slopes, total.double()[:, None] / n], dim=1)
        return loss / n + penalty / 2 * turned.square().sum().item(), gradient.flatten().numpy()

    first = np.zeros(k * (d + 1))
    if start is not None:
        u = start.weights.double() @ axes / stretch
        first = torch.cat([u, start.bias.double()[:, None]], dim=1).flatten().numpy()
    options = {"maxiter": 500, "ftol": tolerance, "gtol": 1e-6, "maxcor": 20}
    found = torch.from_numpy(minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x).view(k, d + 1)
    return Linear(mean, scale, (found[:, :d] * stretch @ axes.T).float(), found[:, d].float(), classes)


def standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and standard deviation 1, that mean, and that deviation: (N, D), (D,), (D,)."""
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-7 * (1 + mean.abs()), deviation, 1.0)
    return (x - mean) / scale, mean, scale


def choose_c(x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """The C with the best accuracy on a held-out part of the training images, and how it was found.

    The penalty falls from strong to weak, each fit starting from the one before; two steps without a gain end it.
    Where a class is too rare to be split, C is 1 / (0.001 N).
    """
    held, kept = held_out(y)
    if len(held) < 20 or len(np.unique(y[kept])) < len(np.unique(y)):
        return 1 / (1e-3 * len(y)), "C not chosen: too few images to hold some out"
    best, chosen, worse = -1.0, STRENGTHS[0], 0
    images, model = rotate(x[kept], y[kept]), None
    for strength in STRENGTHS:
        model = fit_rotated(images, strength, model, tolerance=1e-5)
        accuracy = float((model.predict(x[held]) == y[held]).mean())
        if accuracy > best:
            best, chosen, worse = accuracy, strength, 0
        else:
            worse += 1
        if worse == 2:
            break
    c = 1 / (chosen * len(y))
    return c, f"C = {c:.2g} chosen on {len(held):,} held-out training images ({100 * best:.1f} %)"


def held_out(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are held out and rows that are kept: a tenth of each class, always the same."""
    random = np.random.default_rng(0)
    order = random.permutation(len(y))
    held = np.concatenate(
        [rows[: round(HELD_OUT * len(rows))] for rows in (order[y[order] == k] for k in np.unique(y))]
    )
    return held, np.setdiff1d(np.arange(len(y)), held)


def linear(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray) -> Result:
    """Linear probe: C chosen on held-out training images, then fitted on all of them."""
    c, how = choose_c(train_emb, train_lbl)
    model = fit_linear(train_emb, train_lbl, c)
    protocol = f"logistic regression on standardised frozen embeddings of {len(train_emb):,} training images; {how}"
    return Result(model.predict(test_emb), protocol, model.probabilities(test_emb))


def nearest_labels(
    train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int
) -> tuple[Tensor, np.ndarray]:
    """The labels of the k training images of the highest cosine similarity, nearest first.

    Returns:
        int64 (M, k), places in the second value; and the labels, (K,).
    """
    if not 1 <= k <= len(train_emb):
        raise InputError(f"k must be in 1..{len(train_emb)}, the number of training images, not {k}")
    classes, target = np.unique(train_lbl, return_inverse=True)
    labels = torch.from_numpy(target.astype(np.int64))
    train = F.normalize(torch.from_numpy(train_emb), dim=1)
    test = F.normalize(torch.from_numpy(test_emb), dim=1)
    nearest = [labels[(chunk @ train.T).topk(k, dim=1).indices] for chunk in test.split(chunk_rows(len(train)))]
    return torch.cat(nearest), classes


def knn_predict(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray, k: int = 10) -> np.ndarray:
    """Majority vote of the k training images of the highest cosine similarity.

    Among classes with equally many votes, the one whose nearest member is nearest wins; scikit-learn takes the
    smallest label there.

    Args:
        train_emb, test_emb: float32 (N, D) and (M, D).
        train_lbl: int (N,).
        k: at most N.

    Returns:
        int64 (M,).
    """
    neighbours, classes = nearest_labels(train_emb, train_lbl, test_emb, k)
    return classes[vote(neighbours, len(classes)).numpy()].astype(np.int64)


def chunk_rows(train: int) -> int:
    """Test images in a chunk, so that its similarities to the training images fit in CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * train))


def vote(neighbours: Tensor, classes: int) -> Tensor:
    """The winning class of each row of neighbours, int64 (M, k), nearest first -> int64 (M,)."""
    k = neighbours.shape[1]
    votes = count(neighbours, classes)
    ranks = torch.arange(k).expand_as(neighbours)
    first = torch.full_like(votes, k).scatter_reduce(1, neighbours, ranks, "amin")  # of each class's nearest member
    return ((k + 1) * votes - first).argmax(dim=1)


def count(neighbours: Tensor, classes: int) -> Tensor:
    """Votes for each class, int64 (M, k) -> int64 (M, K), without a one-hot (M, k, K): 800 MB for 1,000 classes."""
    votes = torch.zeros(len(neighbours), classes, dtype=torch.int64)
    return votes.scatter_add_(1, neighbours, torch.ones_like(neighbours))


def tied(neighbours: Tensor, classes: int) -> float:
    """The share of rows in which two classes have the most votes."""
    votes = count(neighbours, classes).topk(2, dim=1).values  # (M, 2)
    return (votes[:, 0] == votes[:, 1]).double().mean().item()


def knn(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray) -> Result:
    """kNN probe with k = 10, or all of fewer training images."""
    k = min(10, len(train_emb))
    neighbours, classes = nearest_labels(train_emb, train_lbl, test_emb, k)
    predictions = classes[vote(neighbours, len(classes)).numpy()].astype(np.int64)
    ties = f"ties, {100 * tied(neighbours, len(classes)):.1f} % of the test images, go to the nearest"
    return Result(
        predictions, f"majority of the k = {k} nearest of {len(train_emb):,} training images by cosine; {ties}"
    )


PROBES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Result]] = {
    "linear": linear,
    "knn": knn,
}


def probe(run: Run | str | Path) -> dict[str, Any]:
    """Measure the embeddings of a run with every probe; of images without labels, say that there is nothing to measure.

    Writes NAME_accuracy of each probe (a fraction), chance and the protocols to scores.json, and the linear probe's
    predictions and probabilities to test_pred.npy, int64 (M,), and test_prob.npy, float32 (M, K).

    Returns:
        The scores of the run.

    Raises:
        InputError: embeddings or labels are missing, damaged, not finite or do not fit together.
    """
    keep_freed_memory()
    run = Run.open(run)
    if run.unlabelled and not run.file("train_lbl.npy").exists():
        print(f"nothing is probed: the images of {str(run.path)!r} have no labels", file=sys.stderr)
        return run.scores
    start = time.perf_counter()
    train_emb, train_lbl = rows_and_labels(run, "train")
    test_emb, test_lbl = rows_and_labels(run, "test")
    if train_emb.shape[1] != test_emb.shape[1]:
        raise InputError(f"train_emb.npy has {train_emb.shape[1]} columns, but test_emb.npy {test_emb.shape[1]}")
    if len(np.unique(train_lbl)) < 2:
        raise InputError(f"train_lbl.npy must hold two classes or more, not {len(np.unique(train_lbl))}")
    scores: dict[str, Any] = {"chance": chance(train_lbl, test_lbl), "protocol": {}}
    for name, function in PROBES.items():
        result = function(train_emb, train_lbl, test_emb)
        scores[f"{name}_accuracy"] = float((result.predictions == test_lbl).mean())
        scores["protocol"][name] = result.protocol
        if name == "linear":
            assert result.probabilities is not None
            runs.save_array(run.file("test_pred.npy"), result.predictions)
            runs.save_array(run.file("test_prob.npy"), result.probabilities)
    run.update_scores(**scores, probe_seconds=time.perf_counter() - start)
    return run.scores


def chance(train_lbl: np.ndarray, test_lbl: np.ndarray) -> float:
    """The share of the test images that the most frequent training class gets right."""
    labels, counts = np.unique(train_lbl, return_counts=True)
    return float((test_lbl == labels[counts.argmax()]).mean())


def rows_and_labels(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 (N, D) and labels int64 (N,) of a split, checked."""
    rows, labels = run.array(f"{split}_emb.npy"), run.array(f"{split}_lbl.npy")
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows):
        raise InputError(f"{split}_emb.npy must be float32 (N, D), not {rows.dtype} {rows.shape}")
    if labels.shape != rows.shape[:1] or labels.dtype != np.int64:
        raise InputError(
            f"{split}_lbl.npy must be int64 ({len(rows)},) as the embeddings, not {labels.dtype} {labels.shape}"
        )
    if not np.isfinite(rows).all():
        raise InputError(f"{split}_emb.npy must be finite, but row {np.isfinite(rows).all(axis=1).argmin()} is not")
    return rows, labels
