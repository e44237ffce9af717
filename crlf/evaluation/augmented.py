"""The linear probe fitted on augmented training images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from crlf.augmentation import Views, ViewSettings
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.logistic_regression import choose_c, fit_linear
from crlf.metrics.intervals import interval
from crlf.runtime.seeding import generator

VIEWS = 2  # of each training image, beside the image itself
BATCH = 500


def augmented(embedded: Embedded) -> Found:
    """The linear probe fitted on the images and on crops and mirror images of them, as is usual in the literature."""
    settings = replace(
        embedded.recipe.augmentation, resolution=1.0, flip=0.5, jitter=0.0, grayscale=0.0, blur=0.0
    )  # pixels are cropped and mirrored only
    views = [embedded.train, *(embed_views(embedded, settings, i) for i in range(VIEWS))]
    predictions = np.empty(len(embedded.test), dtype=np.int64)
    for rows, tested in embedded.parts:
        x, y = np.concatenate([view[rows] for view in views]), embedded.train_lbl[rows]
        c, how, _ = choose_c(embedded.train[rows], y)
        model = fit_linear(x, np.tile(y, len(views)), c / len(views), images=len(y))  # the same penalty per image
        predictions[tested] = model.predict(embedded.test[tested])
    scores = {
        "augmented_accuracy": embedded.accuracy(predictions),
        "augmented_interval": interval(predictions == embedded.test_lbl),
    }
    what = f"as linear, fitted on each training image and {VIEWS} views of it (crops of at least"
    return Found(scores, f"{what} {100 * settings.crop_min:g} % of the area, mirrored in half of the cases); {how}")


@torch.no_grad()
def embed_views(embedded: Embedded, settings: ViewSettings, number: int) -> np.ndarray:
    """A view of each training image, embedded: float32 (N, D)."""
    make_view, encoder, rows = Views(settings, embedded.recipe.normalisation), embedded.encoder, []
    device = next(encoder.parameters()).device
    for i, batch in enumerate(embedded.images[0].split(BATCH)):
        stream = generator(device, "augmented", number, i)
        rows.append(encoder(make_view(batch.to(device), stream)).float().cpu())  # (b, D)
    return torch.cat(rows).numpy()
