"""The linear probe: how often it is right."""

from __future__ import annotations

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval


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
