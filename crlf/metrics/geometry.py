"""Measures of features that need no labels: rank, alignment, uniformity, spread, and the diagnosis of a collapse.

Every measure is a function of features, float (N, D) with row i for image i, on any device. Singular values are
computed on the CPU in float64, which Apple's GPUs lack.

Shapes: N images, D features (of an embedding h or a projection z).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crlf.methods.base import cosine, spread, unit

DEAD = 1e-3  # share of the root mean square of all features; a feature that deviates less is dead
ROUNDING = 1e-12  # squared distances of normalised float32 features below this are rounding errors
BINS = 20  # of a histogram of cosines, over -1..1

# Thresholds of a collapse. They separate healthy runs of every method from broken ones, as
# tests/training/test_monitor.py shows.
SETTLED = 50  # steps; earlier, batch norm still holds its initial statistics, and all embeddings are similar
CONSTANT = {"z": 0.1, "h": 0.02}  # spread below this: the mean cosine of two images is above 0.99 and 0.9996
ALIKE = 0.5  # and agreement below this: the remaining differences do not depend on the image
DOMINANT = {"z": 1.1, "h": 2.0}  # effective rank below this; DINO's z can be 1.3 in a healthy run
MOST_DEAD = 0.9  # share of dead features above this


# The spectrum


def singular_values(h: Tensor) -> Tensor:
    """The singular values of a matrix, largest first: (N, D) -> float64 (min(N, D),) on the CPU, all at least 0.

    They are the square roots of the eigenvalues of the smaller Gram matrix, which takes a tenth of the time of an SVD.
    Values below 1e-8 of the largest are rounding errors, as they would be in features of 7 digits. NaN if h is not
    finite.
    """
    h = h.detach().cpu().double()
    gram = h @ h.T if len(h) < h.shape[1] else h.T @ h
    if not gram.isfinite().all():
        return gram.new_full((len(gram),), math.nan)
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def centred(h: Tensor) -> Tensor:
    """Subtract the mean of the rows: (N, D) -> (N, D). Features after a ReLU share a direction common to all images."""
    return h - h.mean(dim=0)


def effective_rank(values: Tensor, epsilon: float = 0.0) -> float:
    """The number of dimensions in use: the exponential of the entropy of the normalised singular values.

    Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, definition 1.

    Args:
        values: singular values, float (K,), at least 0.
        epsilon: added to each share, as RankMe does.

    Returns:
        In 1..K: K if all are equal, 1 if only one is not 0; 1 for a matrix of zeros, which the paper leaves out.
    """
    total = values.sum()
    if total == 0:
        return 1.0
    p = values / total + epsilon
    return torch.special.entr(p).sum().exp().item()


def rankme(h: Tensor) -> float:
    """RankMe (Garrido, Balestriero, Najman and LeCun 2023, equation 1): (N, D) -> 1..min(N, D).

    It is the effective rank of the uncentred features, with an epsilon of 1e-7 added to each share. It grows with the
    sample up to about 10,000 images, so only values from samples of the same size can be compared.
    """
    return effective_rank(singular_values(h), epsilon=1e-7)


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """LiDAR (Thilak et al. 2023, Sensing linear probing performance in joint embedding SSL architectures,
    https://arxiv.org/abs/2312.04000, equations 1 to 4): how many directions separate images more than views.

    It is the effective rank of the covariance between images, whitened by the covariance within images.

    Args:
        views: float (n, q, D), q views of each of n images. They are scaled to a standard deviation of 1 first.
        delta: added to the diagonal of the covariance within images.

    Returns:
        In 1..min(n, D).
    """
    h = views.double().cpu()
    h = h / h.std().clamp_min(1e-12)
    means = h.mean(dim=1)  # (n, D)
    between, within = centred(means), (h - means[:, None]).flatten(0, 1)
    inner = within.T @ within / (h.shape[0] * (h.shape[1] - 1))
    values, vectors = torch.linalg.eigh(inner)
    whitened = between @ vectors * (values.clamp_min(0) + delta).rsqrt()  # (n, D)
    squares = singular_values(whitened).square()
    return effective_rank(squares, epsilon=1e-12)


def participation_ratio(values: Tensor) -> float:
    """The participation ratio (sum of v)² / sum of v², where v are the squared singular values (K,).

    For centred features v are N times the variances along the principal components (Gao et al. 2017, A theory of
    multineuronal dimensionality, equation 5). It is in 1..K, and small values count less than in the effective rank.
    1 for zeros.
    """
    v = values.square()
    total = v.square().sum()
    return (v.sum().square() / total).item() if total != 0 else 1.0


def spectrum(values: Tensor) -> list[float]:
    """The decay of the singular values (K,): those of rank 1, 2, 4, 8, … as shares of the first, in 0..1."""
    picked = values.double()[[2**i - 1 for i in range(len(values).bit_length())]]
    return (picked / picked[0].clamp(min=1e-300)).tolist()


# Positions on the sphere


def alignment(a: Tensor, b: Tensor) -> float:
    """The mean squared distance of two normalised views of an image: (N, D) twice -> 0..4, 0 if they are equal.

    Wang and Isola 2020, Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere, section 4.1, with their exponent of 2.
    """
    return (unit(a) - unit(b)).square().sum(dim=1).mean().item()


def uniformity(h: Tensor) -> float:
    """The log of the mean Gaussian potential exp(-2 |x - y|²) over pairs of different normalised rows: (N, D) -> -8..0.

    Wang and Isola 2020, section 4.1, with their t of 2. 0 if all rows are equal; nearly -4 if they are uniform on a
    sphere of many dimensions.
    """
    similar = off_diagonal(cosine(h, h)).clamp(max=1)
    return (4 * (similar - 1)).exp().mean().log().item()


def dead(h: Tensor) -> float:
    """The share of (nearly) constant features: (N, D) -> 0..1.

    A feature is dead if its standard deviation over the images is at most `DEAD` times the root mean square of h.
    """
    limit = DEAD * h.square().mean().sqrt()
    return (h.std(dim=0) <= limit).float().mean().item() if h.isfinite().all() else math.nan


def agreement(a: Tensor, b: Tensor) -> float:
    """How much closer two views of an image are than views of different images: (N, D) twice -> at most 1.

    1 - (mean squared distance of the former) / (that of the latter), after normalisation. It estimates the share of the
    variance that comes from the image, the intraclass correlation ICC(1,1) of Shrout and Fleiss 1979: 1 if views of an
    image are equal, 0 if they differ as much as views of different images, and 0 if all rows are equal.
    """
    a, b = unit(a), unit(b)
    same = (a - b).square().sum(dim=1).mean()
    any_two = sum((x - x.mean(dim=0)).square().sum(dim=1).mean() for x in (a, b))
    any_two = any_two + (a.mean(dim=0) - b.mean(dim=0)).square().sum()  # without the cancellation of 2 - 2 cosine
    other = (len(a) * any_two - same) / (len(a) - 1)
    return (1 - same / other).item() if other > ROUNDING else 0.0


def similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of views of the same image (N,) and of different images (N (N - 1),), from (N, D) twice."""
    all_pairs = cosine(a, b)
    return all_pairs.diagonal(), off_diagonal(all_pairs)


def off_diagonal(square: Tensor) -> Tensor:
    """The entries off the diagonal: (N, N) -> (N (N - 1),)."""
    return square[~torch.eye(len(square), dtype=torch.bool, device=square.device)]


def histogram(cosines: Tensor, bins: int = BINS) -> list[int]:
    """Counts in equal bins of -1..1, lowest first."""
    return torch.histc(cosines.detach().cpu().float().clamp(-1, 1), bins, -1, 1).long().tolist()


# All together


def describe(a: Tensor, b: Tensor, values: Tensor) -> dict[str, float]:
    """Every measure of the features of two views, float (N, D) each. Measures of one view use `a`, whose centred
    singular values are `values`."""
    positive, negative = similarities(a, b)
    return {
        "rankme": rankme(a),
        "effective_rank": effective_rank(values),
        "participation_ratio": participation_ratio(values),
        "alignment": alignment(a, b),
        "uniformity": uniformity(a),
        "agreement": agreement(a, b),
        "spread": spread(a).item(),
        "dead": dead(a),
        "positive_cosine": positive.mean().item(),
        "negative_cosine": negative.mean().item(),
    }


# Collapse


ADVICE = {
    "spread": "a lower --lr or a longer --warmup, and check predictor, stop-gradient and target of the method",
    "effective_rank": "a lower --lr, stronger augmentation (--jitter, --grayscale), or --method vicreg",
    "dead": "a lower --lr or a smaller --weight-decay",
}


class Collapse(NamedTuple):
    """A collapse: features that no longer distinguish images."""

    what: str
    """A description of the projections or embeddings."""
    measure: str
    """The measure that shows it, such as "spread of z"."""
    value: float
    threshold: float
    """The threshold that the value crosses."""
    advice: str
    """Flags to try."""

    def __str__(self) -> str:
        return f"collapse: {self.what} ({self.evidence()}); try {self.advice}"

    def evidence(self) -> str:
        """The number and its threshold, in words."""
        side = "below" if self.value < self.threshold else "above"
        return f"{self.measure} {self.value:.3f}, {side} {self.threshold}"


def diagnose(health: dict[str, Any]) -> Collapse | None:
    """The first collapse that the measures show, or None.

    Args:
        health: the measures of `crlf.training.monitor.measure`, after at least `SETTLED` steps.
    """
    for name, what in (("z", "projection"), ("h", "embedding")):
        if f"{name}_spread" not in health:
            continue
        deviation, near, rank, silent = (
            health[f"{name}_{key}"] for key in ("spread", "agreement", "effective_rank", "dead")
        )
        if deviation < CONSTANT[name] and near < ALIKE:
            said = f"every image has nearly the same {what}"
            return Collapse(said, f"spread of {name}", deviation, CONSTANT[name], ADVICE["spread"])
        if rank < DOMINANT[name]:
            said = f"one direction dominates every {what}"
            return Collapse(said, f"effective rank of {name}", rank, DOMINANT[name], ADVICE["effective_rank"])
        if silent > MOST_DEAD:
            said = f"most features of every {what} are dead"
            return Collapse(said, f"share of dead features in {name}", silent, MOST_DEAD, ADVICE["dead"])
    return None
