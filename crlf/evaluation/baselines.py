"""What the probes give without what was learned, on pixels and an untrained encoder; and what labels would give."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from crlf import encoders
from crlf.augmentation import Views
from crlf.data.loader import batch_rows
from crlf.embedding.embed import embed_images
from crlf.errors import InputError
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.logistic_regression import linear
from crlf.metrics.knn import HEADLINE, knn_predict
from crlf.optim import OPTIMIZERS, schedule, set_rates
from crlf.runtime.devices import autocast, pick_device
from crlf.runtime.seeding import generator


def pixels(embedded: Embedded) -> Found:
    """The linear probe and kNN on raw pixels."""
    train, test = (part.flatten(1).numpy().astype(np.float32) for part in embedded.images)  # (N, C H W)
    return Found(both("pixels", embedded, train, test), "linear probe and kNN (k = 10) on raw pixels")


def untrained(embedded: Embedded) -> Found:
    """The linear probe and kNN on the embeddings of the encoder as the run drew it, before the first step."""
    recipe, (train, test) = embedded.recipe, embedded.images
    _, channels, height, width = train.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = encoders.build(recipe.encoder, channels, min(height, width), recipe.embedding.regions)
    encoder = encoders.Frozen(net, recipe.embedding.mirror).to(pick_device(embedded.device))
    rows = [embedded.embed(part, encoder) for part in (train, test)]
    how = "linear probe and kNN (k = 10) on the encoder before its first step, the run's recipe and seed"
    return Found(both("untrained", embedded, *rows), how)


def both(name: str, embedded: Embedded, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The accuracies of the two probes with other features, float32 (N, F) and (M, F)."""
    neighbours = knn_predict(train, embedded.train_lbl, test, min(HEADLINE, len(train)))
    return {
        f"{name}_linear_accuracy": embedded.accuracy(linear(train, embedded.train_lbl, test).predictions),
        f"{name}_knn_accuracy": embedded.accuracy(neighbours),
    }


def supervised(embedded: Embedded) -> Found:
    """The test accuracy of a network of the same encoder that learns from the labels with the run's budget.

    Raises:
        InputError: the run's budget is not known.
    """
    recipe = embedded.recipe
    assert embedded.run is not None
    seen = embedded.run.scores.get("views_seen")
    if not isinstance(seen, int) or seen < 1:
        raise InputError("supervised needs views_seen in scores.json: `crlf pretrain` writes it")
    network = train_classifier(embedded, max(1, seen // (recipe.batch_size * recipe.views)))
    predictions = embed_images(network, embedded.images[1], recipe.normalisation).argmax(axis=1)
    how = "the same encoder and a linear layer trained together on the labels (cross-entropy), with the run's views"
    return Found(
        {"supervised_accuracy": embedded.accuracy(predictions)},
        f"{how}, batch, optimizer, schedule and steps ({seen:,} views)",
    )


def train_classifier(embedded: Embedded, steps: int) -> nn.Module:
    """An encoder and a linear layer trained on the labels: float (B, C, h, w) -> logits (B, K), in evaluation mode."""
    recipe, device, pixels = embedded.recipe, pick_device(embedded.device), embedded.images[0]
    _, channels, height, width = pixels.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        encoder = encoders.build(recipe.encoder, channels, min(height, width))
        head = nn.Linear(encoder.out_dim, int(embedded.train_lbl.max()) + 1)  # type: ignore[arg-type]
    network = nn.Sequential(encoder, head).to(device).train()
    optimizers = OPTIMIZERS[recipe.optim.optimizer](
        list(network.named_parameters()), recipe.optim.for_batch(recipe.batch_size)
    )
    labels, make_view = torch.from_numpy(embedded.train_lbl), Views(recipe.augmentation, recipe.normalisation)
    for step in range(steps):
        rows = batch_rows(step, len(pixels), recipe.batch_size, recipe.seed)
        stream = generator(device, "supervised", recipe.seed, step)
        views = make_view(pixels[rows].to(device), stream, recipe.views)  # (V B, C, h, w)
        share = (step + 0.5) / steps
        set_rates(
            optimizers,
            lr=schedule(share, recipe.optim.warmup, recipe.optim.final_lr),
            decay=schedule(share, 0.0, recipe.optim.final_weight_decay),
        )
        with autocast(recipe.precision, device):
            loss = F.cross_entropy(network(views), labels[rows].to(device).repeat(recipe.views))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()
