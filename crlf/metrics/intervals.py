"""Confidence intervals of an accuracy, and of the difference of two accuracies.

They cover the choice of test images for a fixed run, not the seed. Shapes: M test images.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95
DRAWS = 20_000


def interval(right: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of an accuracy: bool (M,), M at least 1 -> two fractions.

    Wilson 1927, Probable inference, the law of succession, and statistical inference. Percentiles of the bootstrap fail
    with few images or few mistakes: for an accuracy of 0.9 on 12 images they contain the truth in 71 of 100 cases, for
    0.98 on 100 images in 87; Wilson's interval in 97 and 95.
    """
    from scipy.stats import binomtest  # slow to import

    found = binomtest(int(right.sum()), len(right)).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def paired_interval(a: np.ndarray, b: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The interval of the accuracy of b minus that of a on the same images: bool (M,) twice -> two fractions.

    It uses percentiles of the bootstrap (Efron and Tibshirani 1993, An introduction to the bootstrap, section 13.3),
    since Wilson's interval is for a single accuracy and ignores the pairing. A sample is a multinomial draw of the
    numbers of images that only b, only a, and both or neither predict correctly. The draws are fixed.
    """
    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    counts = np.array([gained, lost, len(a) - gained - lost])
    drawn = np.random.default_rng(0).multinomial(len(a), counts / len(a), size=DRAWS)  # (DRAWS, 3)
    tail = (1 - level) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / len(a), [tail, 1 - tail])
    return float(low), float(high)
