"""The linear probe: how often it is right, and whether it knows."""

from __future__ import annotations

import numpy as np

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval

BINS = 15


def linear(images: Embedded) -> Found:
    """The linear probe, C chosen on held-out training images and then fitted on all of them."""
    model, how = images.linear
    predictions = model.predict(images.test)
    protocol = f"logistic regression on standardised frozen embeddings of {len(images.train):,} training images; {how}"
    scores = {
        "linear_accuracy": images.accuracy(predictions),
        "linear_interval": interval(predictions == images.test_lbl),
    }
    protocol += f"; interval: 95 % of bootstrap samples of the {len(images.test):,} test images"
    files = {"test_pred.npy": predictions, "test_prob.npy": model.probabilities(images.test)}
    return Found(scores, protocol, files)


def calibration(images: Embedded) -> Found:
    """The expected calibration error of the linear probe, and its mean confidence."""
    probabilities = images.linear[0].probabilities(images.test)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == images.test_lbl
    scores = {"calibration_error": calibration_error(confidence, right), "confidence": float(confidence.mean())}
    return Found(scores, f"expected calibration error of the linear probe over {BINS} equal bins of its confidence")


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The mean distance of confidence and accuracy over bins of equal width, by their images: (M,) twice -> 0..1.

    Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks, equation 3; a bin holds its upper
    bound. torchmetrics has the same and takes seconds to import.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins) - 1, 0, bins - 1).astype(int)  # (M,)
    return float(np.abs(np.bincount(place, right - confidence.astype(np.float64))).sum() / len(confidence))
