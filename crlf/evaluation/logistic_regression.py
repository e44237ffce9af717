"""The linear probe: multinomial logistic regression, with its penalty chosen on held-out training images.

Shapes: N training and M test images, D embedding, R its rank at most, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from crlf.runtime.devices import threads_for

HELD_OUT = 0.1  # share of the training images that the regularisation is chosen on
STRENGTHS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # of the penalty, relative to the mean loss
FEW = 100  # held-out images; fewer tell little, and all images are held out in turn
FOLDS = 5
FEW_STRENGTHS = (
    1e3,
    3e2,
    1e2,
    3e1,
    1e1,
    3.0,
    1.0,
    3e-1,
    1e-1,
    3e-2,
    1e-2,
    3e-3,
    1e-3,
)  # of the penalty, for few images
ONE_SCALE = 250  # fewer images do not tell the deviation of each feature well enough to divide by it
BLOCK = 512  # training images in a product of the linear probe
CHOSEN_ON = 16384  # images that are fitted to choose C
SAMPLE = 16384  # of the images, for their covariance


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


class Problem(NamedTuple):
    """Images as all fits on them share them: standardised, in R = min(N, D) coordinates, in blocks."""

    blocks: list[tuple[Tensor, Tensor]]  # float32 features (b, R), and one-hot labels (K, b)
    covariance: Tensor  # float64 (R, R), of at most `SAMPLE` of the images
    basis: Tensor | None  # float32 (D, R), orthonormal columns that the images lie in; None: R is D
    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    classes: np.ndarray  # (K,)


def pose(x: np.ndarray, y: np.ndarray, total: int | None = None) -> Problem:
    """Standardise: float32 (N, D) and int (N,), at least two different labels.

    `total` is the number of images if x holds a part of them, or several rows for each. With fewer images than
    features, the penalty keeps the weights in what the images span. They are fitted there: a covariance of 100 images
    then has 100 rows, not 1,792.
    """
    features, mean, scale = standardise(torch.from_numpy(x), (total or len(x)) < ONE_SCALE)
    basis = None
    if len(x) < x.shape[1]:
        basis = torch.linalg.qr(features.T)[0]
        features = features @ basis
    classes, places = np.unique(y, return_inverse=True)
    target = F.one_hot(torch.from_numpy(places.astype(np.int64)), len(classes)).float().T  # (K, N)
    sample = features[:: math.ceil(len(features) / SAMPLE)]
    covariance = (sample.T @ sample / len(sample)).double()
    return Problem(
        list(zip(features.split(BLOCK), target.split(BLOCK, dim=1), strict=True)),
        covariance,
        basis,
        mean,
        scale,
        classes,
    )


def fit_linear(
    x: np.ndarray,
    y: np.ndarray,
    c: float,
    start: Linear | None = None,
    tolerance: float = 1e-8,
    images: int | None = None,
) -> Linear:
    """Minimise scikit-learn's objective, C * sum of the log losses + ||W||^2 / 2, with L-BFGS.

    The features are standardised first (constant ones are only centred; few images have one scale, see `standardise`);
    the bias is not penalised. L-BFGS works in float64 on coordinates in which the curvature is about the same in all
    directions (`solve`). Embeddings are so correlated that it takes a tenth of the steps there. Products with the
    images are in float32.

    Args:
        x: float32 (N, D).
        y: int (N,), at least two different labels.
        c: C, the inverse of the penalty.
        start: where to start from, with the same classes and features of the same kind.
        tolerance: it ends when a step lowers the objective by less than this share.
        images: the number of images, if x has several rows for each.
    """
    with threads_for(len(x)):
        return solve(pose(x, y, images), 1 / (c * len(x)), start, tolerance)


def solve(problem: Problem, penalty: float, start: Linear | None, tolerance: float) -> Linear:
    """Minimise mean log loss + penalty * ||W||^2 / 2; the arguments as for `fit_linear`.

    L-BFGS moves V = W L, where L L^T = covariance / K + penalty I is about the curvature of the objective. L^-1 serves
    in float32: another matrix close to it would do, as long as weights and slopes are multiplied by the same one.
    """
    blocks, covariance, basis, mean, scale, classes = problem
    n, r, k = sum(len(rows) for rows, _ in blocks), len(covariance), len(classes)
    eye = torch.eye(r, dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance / k + penalty * eye)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False).float()

    def weights_of(v: Tensor) -> Tensor:  # W = V L^-1
        return v.float() @ inverse

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        v, bias = torch.from_numpy(flat[: k * r]).view(k, r), torch.from_numpy(flat[k * r :, None])
        weights, shift = weights_of(v), bias.float()
        loss, slope, total = 0.0, torch.zeros(k, r), torch.zeros(k)
        for rows, ones in blocks:  # a block stays in the cache between the two products
            logits = torch.addmm(shift, weights, rows.T).log_softmax(dim=0)  # (K, b): half the time of (b, K)
            loss -= (logits * ones).sum().item()
            error = logits.exp_().sub_(ones)
            slope.addmm_(error, rows)
            total += error.sum(dim=1)
        slopes = (slope / n + penalty * weights) @ inverse.T  # of V: those of W, times L^-T
        gradient = torch.cat([slopes.flatten(), total / n]).double()
        return loss / n + penalty / 2 * weights.square().sum().item(), gradient.numpy()

    first = np.zeros(k * (r + 1))
    if start is not None:
        w = start.weights.double() if basis is None else start.weights.double() @ basis.double()
        first = torch.cat([(w @ factor).flatten(), start.bias.double()]).numpy()
    options = {"maxiter": 500, "ftol": tolerance, "gtol": 1e-6, "maxcor": 20}
    found = torch.from_numpy(minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x)
    weights = weights_of(found[: k * r].view(k, r))
    return Linear(mean, scale, weights if basis is None else weights @ basis.T, found[k * r :].float(), classes)


def standardise(x: Tensor, one_scale: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and standard deviation 1, that mean, and that deviation: (N, D), (D,), (D,).

    With `one_scale` all features have the same scale, the root of their mean variance. A few images do not tell the
    deviation of a feature: one that hardly varies by chance would count most (docs/fine-tune.md has the accuracies).
    """
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    if one_scale:
        deviation = deviation.square().mean().sqrt().expand_as(deviation)
    scale = torch.where(deviation > 1e-7 * (1 + mean.abs()), deviation, 1.0)
    return (x - mean) / scale, mean, scale


class Choice(NamedTuple):
    """The C that a linear probe takes."""

    c: float
    how: str
    """It was found, in words."""
    model: Linear | None
    """The fit that it was judged by, on a part of the images; None where it was not chosen."""


def choose_c(x: np.ndarray, y: np.ndarray) -> Choice:
    """The C with the best accuracy on a held-out part of the training images.

    The penalty falls from strong to weak, each fit starting from the one before; two steps without a gain end it.
    Of the images that are not held out at most `CHOSEN_ON` are fitted. C, the variance that the weights are thought to
    have, is then that of all images. Where fewer than `FEW` images would be held out, see `choose_by_log_loss`.

    Args:
        x: float32 (N, D).
        y: int (N,), at least two different labels.
    """
    held, kept = held_out(y, CHOSEN_ON)
    if len(held) < FEW or len(np.unique(y[kept])) < len(np.unique(y)):
        with threads_for(len(y)):
            return choose_by_log_loss(x, y)
    with threads_for(len(y)):
        images, models = pose(x[kept], y[kept]), list[Linear]()
        accuracies = list[float]()
        for strength in STRENGTHS:
            models.append(solve(images, strength, models[-1] if models else None, tolerance=1e-4))
            accuracies.append(float((models[-1].predict(x[held]) == y[held]).mean()))
            best = int(np.argmax(accuracies))
            if len(accuracies) == best + 3:
                break
    c = 1 / (STRENGTHS[best] * len(kept))
    how = f"C = {c:.2g} chosen on {len(held):,} held-out training images ({100 * accuracies[best]:.1f} %)"
    return Choice(c, how, models[best])


def choose_by_log_loss(x: np.ndarray, y: np.ndarray) -> Choice:
    """The C of the least log loss over images that are held out in turn, those of a class with one image never.

    With few images a penalty that is too weak costs little accuracy, but any image is then told with confidence. On
    CIFAR-10 with 5 labels a class the confidence was 77 % at an accuracy of 31 %, and is 34 % at 34 %. Where all
    classes have one image, nothing tells C, and it is 1 for features of length 1.

    Args:
        x: float32 (N, D).
        y: int (N,), at least two different labels.
    """
    folds = folds_of_few(y)
    parts = [
        (pose(x[folds != k], y[folds != k], len(y)), np.flatnonzero(folds == k)) for k in range(FOLDS) if k in folds
    ]
    if not parts:
        c = 1 / x.shape[1]
        return Choice(c, f"C = {c:.2g}, not chosen: there is one image of each class", None)
    models: list[Linear | None] = [None] * len(parts)
    losses = list[float]()
    for strength in FEW_STRENGTHS:
        models = [solve(part, strength, model, 1e-5) for (part, _), model in zip(parts, models, strict=True)]
        losses.append(sum(log_loss(model, x[held], y[held]) for model, (_, held) in zip(models, parts, strict=True)))
        best = int(np.argmin(losses))
        if len(losses) == best + 3:
            break
    count = int((folds >= 0).sum())
    fitted = float(np.mean([(folds != k).sum() for k in range(FOLDS) if k in folds]))
    c = 1 / (FEW_STRENGTHS[best] * fitted)
    how = f"C = {c:.2g} chosen by the log loss of {count:,} training images, held out in {len(parts)} parts"
    return Choice(c, f"{how} ({losses[best] / count:.2f})", None)


def folds_of_few(y: np.ndarray) -> np.ndarray:
    """The part that each image is held out in, class by class in turn; -1 for the only one of a class: int64 (N,)."""
    order, folds, next_fold = np.random.default_rng(0).permutation(len(y)), np.full(len(y), -1), 0
    for rows in (order[y[order] == k] for k in np.unique(y)):
        if len(rows) > 1:
            folds[rows] = (next_fold + np.arange(len(rows))) % FOLDS
            next_fold += len(rows)
    return folds


def log_loss(model: Linear | None, x: np.ndarray, y: np.ndarray) -> float:
    """The sum of -log of the probability of the truth: float32 (M, D), int (M,)."""
    assert model is not None
    return F.cross_entropy(model.logits(x), torch.from_numpy(np.searchsorted(model.classes, y)), reduction="sum").item()


def fit_chosen(x: np.ndarray, y: np.ndarray, tolerance: float = 1e-5) -> tuple[Linear, str]:
    """The linear probe: C chosen on held-out training images, then fitted on all of them; and how, in words.

    A tolerance of 1e-8 takes four times as many steps, and tells 3 of 1,000 images otherwise.
    """
    choice = choose_c(x, y)
    return fit_linear(x, y, choice.c, choice.model, tolerance), choice.how


def held_out(y: np.ndarray, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are held out, a tenth of each class, and rows that are kept; always the same.

    Args:
        y: int (N,).
        most: about how many rows are kept at most, the same share of each class.
    """
    order = np.random.default_rng(0).permutation(len(y))
    held, kept = [], []
    share = 1.0 if most is None else min(1.0, most / len(y))
    for rows in (order[y[order] == k] for k in np.unique(y)):
        count = round(HELD_OUT * len(rows))
        held.append(rows[:count])
        kept.append(rows[count:][: math.ceil(share * (len(rows) - count))])
    return np.concatenate(held), np.sort(np.concatenate(kept))


def linear(train_emb: np.ndarray, train_lbl: np.ndarray, test_emb: np.ndarray) -> Result:
    """Linear probe: C chosen on held-out training images, then fitted on all of them."""
    model, how = fit_chosen(train_emb, train_lbl)
    protocol = f"logistic regression on standardised frozen embeddings of {len(train_emb):,} training images; {how}"
    return Result(model.predict(test_emb), protocol, model.probabilities(test_emb))
