"""The calibration of a classifier: measuring it, and temperature scaling."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from crlf.evaluation.embedded import Embedded, Found

BINS = 15
HOTTEST = 20.0  # largest temperature; beyond it nothing was learned


def calibration(embedded: Embedded) -> Found:
    """The expected calibration error of the linear probe, and its mean confidence."""
    probabilities = embedded.linear[0].probabilities(embedded.test)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == embedded.test_lbl
    scores = {"calibration_error": calibration_error(confidence, right), "confidence": float(confidence.mean())}
    return Found(scores, f"expected calibration error of the linear probe over {BINS} equal bins of its confidence")


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The mean difference of confidence and accuracy over bins of equal width, weighted by images: (M,) twice -> 0..1.

    Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, equation 3; a bin includes its upper
    bound. torchmetrics has the same but takes seconds to import.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins) - 1, 0, bins - 1).astype(int)  # (M,)
    return float(np.abs(np.bincount(place, right - confidence.astype(np.float64))).sum() / len(confidence))


def temperature(p: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, in 1/20..20, that minimises the log loss of the logits: probabilities (M, K), labels int (M,).

    Guo, Pleiss, Sun and Weinberger 2017, section 4.2.
    """
    logits = np.log(np.maximum(p.astype(np.float64), 1e-30))  # up to a constant per row
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = logits / math.exp(log_t)
        top = scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0] - scaled[rows, labels]).mean())

    bound = math.log(HOTTEST)
    return math.exp(float(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
