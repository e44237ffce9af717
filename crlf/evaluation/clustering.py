"""Clustering: k-means on the test embeddings, compared with their labels."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.cosine import unit

STARTS = 10  # of k-means; the one with the smallest sum of squares is kept


def clustering(embedded: Embedded) -> Found:
    """k-means with as many clusters as the test images have classes."""
    rows, K = unit(embedded.test).numpy(), len(np.unique(embedded.test_lbl))
    if len(np.unique(rows, axis=0)) < K:
        return Found({}, f"not measured: {K} clusters need at least {K} different test embeddings")
    found = KMeans(K, n_init=STARTS, random_state=0).fit_predict(rows)
    scores = {
        "cluster_nmi": float(normalized_mutual_info_score(embedded.test_lbl, found)),
        "cluster_ari": float(adjusted_rand_score(embedded.test_lbl, found)),
        "cluster_accuracy": cluster_accuracy(embedded.test_lbl, found),
    }
    which = "test " if embedded.folds is None else ""
    how = f"k-means, k = {K}, the best of {STARTS} starts, on {len(rows):,} {which}embeddings of length 1"
    return Found(scores, f"{how}; accuracy under the best matching of clusters to classes")


def cluster_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """The accuracy if each cluster predicts one class, under the best matching: int (N,) twice -> 0..1.

    Xie, Girshick and Farhadi 2016, Unsupervised deep embedding for clustering analysis, equation 10, with the Hungarian
    algorithm.
    """
    counts = contingency_matrix(labels, clusters)  # (K, clusters)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels))
