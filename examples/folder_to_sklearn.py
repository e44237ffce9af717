"""From a folder of images to a scikit-learn model: embed them, cluster them, and classify with a few labels.

    python examples/folder_to_sklearn.py PHOTOS [--minutes 5]

PHOTOS has a folder for each class; the encoder never sees the classes.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import crlf


def main(photos: str, minutes: float, out: str) -> dict[str, float]:
    run = crlf.pretrain(crlf.Recipe(data=photos, minutes=minutes), out=out, overwrite=True)
    crlf.embed(run)
    embeddings, labels = run.array("train_emb.npy"), run.array("train_lbl.npy")  # float32 (N, D), int64 (N,)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    accuracy = cross_val_score(classifier, embeddings, labels, cv=5).mean()
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=0).fit_predict(embeddings)
    found = {"accuracy": float(accuracy), "rand_index": float(adjusted_rand_score(labels, clusters))}
    print(f"accuracy {100 * found['accuracy']:.1f} %, adjusted Rand index of the clusters {found['rand_index']:.2f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", default="example_run")
    asked = parser.parse_args()
    main(asked.photos, asked.minutes, asked.out)
