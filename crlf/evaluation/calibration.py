"""Whether the linear probe knows how often it is right."""

from __future__ import annotations

import numpy as np

from crlf.evaluation.embedded import Embedded, Found

BINS = 15


def calibration(embedded: Embedded) -> Found:
    """The expected calibration error of the linear probe, and its mean confidence."""
    probabilities = embedded.linear[0].probabilities(embedded.test)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == embedded.test_lbl
    scores = {"calibration_error": calibration_error(confidence, right), "confidence": float(confidence.mean())}
    return Found(scores, f"expected calibration error of the linear probe over {BINS} equal bins of its confidence")


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The mean distance of confidence and accuracy over bins of equal width, by their images: (M,) twice -> 0..1.

    Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, equation 3; a bin holds its upper
    bound. torchmetrics has the same and takes seconds to import.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins) - 1, 0, bins - 1).astype(int)  # (M,)
    return float(np.abs(np.bincount(place, right - confidence.astype(np.float64))).sum() / len(confidence))
