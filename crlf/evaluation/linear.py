"""The linear probe: how often it is right."""

from __future__ import annotations

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval


def linear(embedded: Embedded) -> Found:
    """The linear probe, C chosen on held-out training images and then fitted on all of them."""
    model, how = embedded.linear
    predictions, N = model.predict(embedded.test), len(embedded.train)
    protocol = f"logistic regression on standardised frozen embeddings of {N:,} training images; {how}"
    scores = {
        "linear_accuracy": embedded.accuracy(predictions),
        "linear_interval": interval(predictions == embedded.test_lbl),
    }
    protocol += f"; interval: 95 % of bootstrap samples of the {len(embedded.test):,} test images"
    files = {"test_pred.npy": predictions, "test_prob.npy": model.probabilities(embedded.test)}
    return Found(scores, protocol, files)
