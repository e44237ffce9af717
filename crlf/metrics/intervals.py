"""How far a number would move with other test images: bootstrap intervals, of one accuracy and of a difference.

They hold the run fixed: what another seed would change is not in them. M test images.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95
DRAWS = 20_000


def interval(right: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The bootstrap's percentile interval of an accuracy: bool (M,), M at least 1 -> two fractions.

    Efron and Tibshirani 1993, An introduction to the bootstrap, section 13.3. A sample of M images with replacement has
    a binomial number of right ones, so the quantiles are known without drawing.
    """
    from scipy.stats import binom  # slow to import

    tail = (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], len(right), right.mean())
    return float(low / len(right)), float(high / len(right))


def paired_interval(a: np.ndarray, b: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of the accuracy of b less that of a on the same images: bool (M,) twice -> two shares.

    Images are drawn in pairs: a sample is a multinomial number of those that b alone gets right, that a alone does, and
    that tell nothing. Always the same draws.
    """
    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    counts = np.array([gained, lost, len(a) - gained - lost])
    drawn = np.random.default_rng(0).multinomial(len(a), counts / len(a), size=DRAWS)  # (DRAWS, 3)
    tail = (1 - level) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / len(a), [tail, 1 - tail])
    return float(low), float(high)
