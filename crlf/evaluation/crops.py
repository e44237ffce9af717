"""Whether training paid, without labels: does an image's crop find the image, among all, by its embedding?

A crop has the image's things in another place, size and light; what finds the image by it has learned to see past
these. It is what training asks for, on crops that it has not seen, so it says whether training learned at all, held
against the same encoder untrained. It does not say whether the embeddings tell classes apart.
"""

from __future__ import annotations

import numpy as np
import torch

from crlf.augmentation import Views, ViewSettings
from crlf.embedding.embed import embed_images
from crlf.evaluation.baselines import untrained_encoder
from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.cosine import top_k, unit
from crlf.metrics.intervals import interval, paired_interval
from crlf.normalisation import Normalisation
from crlf.runtime.seeding import generator

IMAGES = 1000  # that are searched, and looked for
CROP = ViewSettings(resolution=1.0, crop_min=0.2, grayscale=0.0)  # colours change as by default


def crops(embedded: Embedded) -> Found:
    """The share of images that are nearest of all to a random crop of theirs, and how much of it is learned."""
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


def some(images: torch.Tensor) -> torch.Tensor:
    """At most `IMAGES` of them, always the same."""
    return images[torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(images))[:IMAGES]))]


def found_by_crop(
    encoder: torch.nn.Module, images: torch.Tensor, by: Normalisation, crop: ViewSettings = CROP
) -> np.ndarray:
    """Which images are the nearest to their own crop: uint8 (n, C, H, W) -> bool (n,)."""
    asked, rows = crops_and_images(encoder, images, by, crop)
    nearest = top_k(unit(asked), [unit(rows)], 1).rows[:, 0]
    return (nearest == torch.arange(len(images))).numpy()


@torch.no_grad()
def crops_and_images(
    encoder: torch.nn.Module, images: torch.Tensor, by: Normalisation, crop: ViewSettings = CROP
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of a random crop of each image, always the same one, and of the images themselves.

    Args:
        encoder: frozen, float (B, C, H, W) -> float (B, D).
        images: uint8 (n, C, H, W).

    Returns:
        float32 (n, D) twice, on the CPU.
    """
    device, views = next(encoder.parameters()).device, Views(crop, by)
    asked = [
        encoder(views(batch.to(device), generator(device, "crops", number))).float().cpu()
        for number, batch in enumerate(images.split(500))
    ]
    return torch.cat(asked), torch.from_numpy(embed_images(encoder, images, by))
