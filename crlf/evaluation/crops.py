"""Crop retrieval, a measure without labels: is an image the nearest neighbour of a random crop of it?

A crop shows the same content at another position, size and colour. Finding the image by its crop is the training task
on unseen crops, so compared with the untrained encoder it shows whether training worked. It does not show whether the
embeddings separate classes.
"""

from __future__ import annotations

import numpy as np
import torch

from crlf.augmentation import Views, ViewSettings
from crlf.data.encoded import Pixels
from crlf.embedding.embed import embed_images
from crlf.evaluation.baselines import untrained_encoder
from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.cosine import top_k, unit
from crlf.metrics.intervals import interval, paired_interval
from crlf.normalisation import Normalisation
from crlf.runtime.seeding import generator

IMAGES = 1000  # at most, as queries and as candidates
CROP = ViewSettings(resolution=1.0, crop_min=0.2, grayscale=0.0)  # with the default changes of colour


def crops(embedded: Embedded) -> Found:
    """The share of images that are the nearest neighbour of their crop, and the gain over the untrained encoder."""
    images = embedded.images[1] if len(embedded.images[1]) else embedded.images[0]
    chosen, by = some(images), embedded.recipe.normalisation
    own = found_by_crop(embedded.encoder, chosen, by)
    scores = {"crops_accuracy": float(own.mean()), "crops_interval": interval(own)}
    if not embedded.recipe.as_given:
        before = found_by_crop(untrained_encoder(embedded), chosen, by)
        gain = {"difference": float(own.mean() - before.mean()), "interval": paired_interval(before, own)}
        scores |= {"untrained_crops_accuracy": float(before.mean()), "crops_over_untrained": gain}
    how = f"the share of {len(chosen):,} images that are the nearest of these, by cosine, to a random crop of them"
    return Found(scores, f"{how} (20 to 100 % of the area, colours changed, mirrored in half of the cases); no labels")


def some(images: Pixels) -> torch.Tensor:
    """A fixed sample of at most `IMAGES` images."""
    return images[torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(images))[:IMAGES]))]


def found_by_crop(
    encoder: torch.nn.Module, images: torch.Tensor, by: Normalisation, crop: ViewSettings = CROP
) -> np.ndarray:
    """Which images are the nearest neighbour of their own crop: uint8 (n, C, H, W) -> bool (n,)."""
    asked, rows = crops_and_images(encoder, images, by, crop)
    nearest = top_k(unit(asked), [unit(rows)], 1).rows[:, 0]
    return (nearest == torch.arange(len(images))).numpy()


@torch.no_grad()
def crops_and_images(
    encoder: torch.nn.Module, images: torch.Tensor, by: Normalisation, crop: ViewSettings = CROP
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of a random but fixed crop of each image, and of the images.

    Args:
        encoder: a frozen encoder, float (B, C, H, W) -> float (B, D).
        images: uint8 (n, C, H, W).
        by: the normalisation of the encoder.
        crop: the settings of the crops.

    Returns:
        float32 (n, D) twice, on the CPU.
    """
    device, views = next(encoder.parameters()).device, Views(crop, by)
    asked = [
        encoder(views(batch.to(device), generator(device, "crops", number))).float().cpu()
        for number, batch in enumerate(images.split(500))
    ]
    return torch.cat(asked), torch.from_numpy(embed_images(encoder, images, by))
