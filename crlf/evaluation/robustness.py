"""The linear probe on corrupted test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crlf.embedding.embed import embed_images
from crlf.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from crlf.evaluation.embedded import Embedded, Found

BATCH = 500


def robustness(embedded: Embedded) -> Found:
    """The linear probe's accuracy on corrupted test images, by corruption and strength, and the mean of all."""
    table = {name: [corrupted_accuracy(embedded, name, strength) for strength in STRENGTHS] for name in CORRUPTIONS}
    scores = {"corrupted_accuracy": float(np.mean([*table.values()])), "robustness": table}
    how = f"{', '.join(CORRUPTIONS)} at 5 strengths each (CIFAR-10-C's formulas), embedded anew"
    which = "test images" if embedded.folds is None else "images of the held-out fold,"
    return Found(scores, f"the linear probe on {which} with {how}; corrupted: mean over all")


def corrupted_accuracy(embedded: Embedded, corruption: str, strength: int) -> float:
    def rows(part: Tensor) -> np.ndarray:
        corrupted = np.ascontiguousarray(CORRUPTIONS[corruption](part.numpy(), strength))
        return embed_images(embedded.encoder, torch.from_numpy(corrupted), embedded.recipe.normalisation)

    found = np.concatenate([rows(part) for part in embedded.images[1].split(BATCH)])
    return embedded.accuracy(embedded.linear[0].predict(found))
