"""Baselines for the probes: raw pixels, the untrained encoder, and supervised training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from crlf import encoders
from crlf.augmentation import Views
from crlf.data.encoded import Pixels
from crlf.data.loader import batch_rows
from crlf.embedding.embed import embed_images
from crlf.errors import InputError
from crlf.evaluation.embedded import Embedded, Found
from crlf.metrics.intervals import paired_interval
from crlf.optim import OPTIMIZERS, schedule, set_rates
from crlf.runtime.devices import autocast, pick_device
from crlf.runtime.seeding import generator
from crlf.training.weights.matching import load
from crlf.training.weights.sources import read

SIDE = 16  # pixels
ASKED = 2000  # test images at most for the baselines' kNN, to save time
GAINS = "the run's gain with the paired interval of 95 %, on the same images"


def pixels(embedded: Embedded) -> Found:
    """The linear probe and kNN on raw pixels, scaled to at most `SIDE` × `SIDE`."""
    train, test = (shrunk(part) for part in embedded.images)  # (N, C h w)
    how = f"linear probe and kNN (k = 10) on raw pixels, scaled to {SIDE} × {SIDE}"
    return Found(both("pixels", embedded, train, test), f"{how}; {gains(embedded)}")


def gains(embedded: Embedded) -> str:
    """How the run is compared with a baseline, for the protocol."""
    asked = f"kNN on {ASKED:,} test images at most" if embedded.folds is None else f"of {embedded.tested()}"
    return f"{asked}; {GAINS}"


def shrunk(images: Pixels) -> np.ndarray:
    """Shrink images by averaging pixels: uint8 (N, C, H, W) -> float32 (N, C h w)."""
    parts = [
        F.adaptive_avg_pool2d(part.float(), SIDE) if part.shape[2] > SIDE else part.float()
        for part in images.split(1000)
    ]
    return torch.cat(parts).flatten(1).numpy()


def untrained(embedded: Embedded) -> Found:
    """The linear probe and kNN on the embeddings of the encoder before the first step, with its random weights or the
    trained weights it started from."""
    encoder, (train, test) = untrained_encoder(embedded), embedded.images
    with autocast(embedded.recipe.precision, pick_device(embedded.device)):
        rows = [embedded.embed(train, encoder)]
        rows.append(rows[0] if embedded.folds is not None else embedded.embed(test, encoder))
    begun = embedded.recipe.start.init or "the run's recipe and seed"
    how = f"linear probe and kNN (k = 10) on the encoder before its first step, {begun}"
    return Found(both("untrained", embedded, *rows), f"{how}; {gains(embedded)}")


def untrained_encoder(embedded: Embedded) -> encoders.Frozen:
    """The initial encoder of the run, on the device.

    Raises:
        InputError: the run trained nothing, or it started from trained weights that are missing or have changed.
    """
    recipe, weights = embedded.recipe, None
    if recipe.as_given:
        raise InputError(f"nothing was trained: the encoder has the weights of {recipe.start.init} unchanged")
    if recipe.start.init:
        weights, before = read(recipe.start.init), started_from(embedded).get("sha256")
        if before not in (None, weights.sha256):
            raise InputError(f"weights {recipe.start.init!r} are not those the run started from")
    _, channels, height, width = embedded.images[0].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = encoders.build(recipe.encoder, channels, min(height, width), recipe.embedding.regions)
    if weights:
        load(net, weights, recipe.start)
    return encoders.Frozen(net, recipe.embedding.mirror).to(pick_device(embedded.device))


def started_from(embedded: Embedded) -> dict[str, Any]:
    """The entry in scores.json about the weights that a run started from."""
    return embedded.run.scores.get("started_from", {}) if embedded.run else {}


def both(name: str, embedded: Embedded, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """The accuracies of both probes on other features, float32 (N, F) and (M, F), and the gains of the run over them:
    the differences with their paired intervals."""
    other, truth = replace(embedded, train=train, test=test), embedded.test_lbl
    scores = compared(name, "linear", other.predicted, embedded.predicted, truth)
    if embedded.folds is not None or len(test) <= ASKED:
        return scores | compared(name, "knn", other.voted, embedded.voted, truth)
    rows = np.random.default_rng(0).permutation(len(test))[:ASKED]
    voted = replace(other, test=test[rows]).voted
    return scores | compared(name, "knn", voted, embedded.voted[rows], truth[rows])


def compared(name: str, probe: str, before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The accuracy of a baseline and the gain of the run over it, from predictions and labels int64 (n,)."""
    a, b = before == truth, after == truth
    gain = {"difference": float(b.mean() - a.mean()), "interval": paired_interval(a, b)}
    return {f"{name}_{probe}_accuracy": float(a.mean()), f"{probe}_over_{name}": gain}


def supervised(embedded: Embedded) -> Found:
    """The test accuracy of the same encoder trained on the labels, with the run's budget.

    Raises:
        InputError: scores.json does not have the run's budget.
    """
    embedded, recipe = embedded.split(), embedded.recipe
    assert embedded.run is not None
    seen = embedded.run.scores.get("views_seen")
    if not isinstance(seen, int) or seen < 1:
        raise InputError("supervised needs views_seen in scores.json: `crlf pretrain` writes it")
    network = train_classifier(embedded, max(1, seen // (recipe.batch_size * recipe.all_views)))
    predictions = embed_images(network, embedded.images[1], recipe.normalisation).argmax(axis=1)
    how = "the same encoder and a linear layer trained together on the labels (cross-entropy), with the run's views"
    return Found(
        {"supervised_accuracy": embedded.accuracy(predictions)},
        f"{how}, batch, optimizer, schedule and steps ({seen:,} views)",
    )


def train_classifier(embedded: Embedded, steps: int) -> nn.Module:
    """Train an encoder and a linear layer on the labels: float (B, C, h, w) -> logits (B, K), in evaluation mode."""
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
