"""The linear probe."""

from __future__ import annotations

from crlf.evaluation.cross_validation import FOLDS
from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval


def linear(embedded: Embedded) -> Found:
    """The linear probe: C is chosen on held-out training images, then the probe is fitted on all of them."""
    model, how = embedded.linear
    predictions, N = embedded.predicted, len(embedded.train)
    of = f"{N:,} training images" if embedded.folds is None else f"{N:,} images, {FOLDS}-fold cross-validated"
    protocol = f"logistic regression on standardised frozen embeddings of {of}; {how}"
    scores = {
        "linear_accuracy": embedded.accuracy(predictions),
        "linear_interval": interval(predictions == embedded.test_lbl),
    }
    protocol += f"; interval: Wilson's, 95 %, of {embedded.tested()}"
    files = {"test_pred.npy": predictions, "test_prob.npy": model.probabilities(embedded.test)}
    return Found(scores, protocol, files)
