"""The probe by k nearest neighbours under cosine similarity: K classes, k neighbours."""

from __future__ import annotations

import numpy as np

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import interval
from crlf.metrics.knn import HEADLINE, KS, TEMPERATURE, tied, vote, weighted_vote


def knn(embedded: Embedded) -> Found:
    """kNN with each k of `KS` that the number of training images allows, by majority and by weighted vote."""
    found = embedded.neighbours
    most = found.labels.shape[1]
    ks, K, headline = sorted({min(k, most) for k in KS}), len(found.classes), min(HEADLINE, most)
    majority, weighted = {}, {}
    for k in ks:
        rows = found.labels[:, :k]
        majority[k] = found.classes[vote(rows, K).numpy()].astype(np.int64)
        weighted[k] = found.classes[weighted_vote(rows, found.cosines[:, :k], K).numpy()].astype(np.int64)
    asked = "test images" if embedded.folds is None else "images"
    ties = f"ties, {100 * tied(found.labels[:, :headline], K):.1f} % of the {asked}, go to the nearest"
    among = f"{len(embedded.train):,} training images" if embedded.folds is None else "all others (leave one out)"
    protocol = f"majority of the k = {headline} nearest of {among} by cosine; {ties}"
    protocol += f"; weighted: votes of exp(cosine / {TEMPERATURE})"
    table = {
        name: {str(k): embedded.accuracy(predictions) for k, predictions in votes.items()}
        for name, votes in (("majority", majority), ("weighted", weighted))
    }
    low_high = interval(embedded.voted == embedded.test_lbl)
    return Found({"knn_accuracy": table["majority"][str(headline)], "knn_interval": low_high, "knn": table}, protocol)
