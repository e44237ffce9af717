"""Writes the results of training: weights, losses, views and scores."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crlf.augmentation import Views
from crlf.data import ImageSet
from crlf.methods.base import SupervisedMethod
from crlf.normalisation import denormalise, normalise
from crlf.recipe import Recipe
from crlf.runs.files import save_array, save_tensors
from crlf.runs.run import ENCODER, LOSS, VIEWS, Run
from crlf.runtime import distributed
from crlf.runtime.devices import describe, dtype_of
from crlf.runtime.seeding import generator
from crlf.training.cost import flops_of_view
from crlf.training.state import State


def mean(losses: Tensor) -> float:
    """The mean in float64, computed on the CPU because Apple's GPUs have no float64."""
    return losses.cpu().double().mean().item()


def save_views(run: Run, recipe: Recipe, data: ImageSet, images: int = 10) -> None:
    """Save the first images, resized to the size of a view, and views of each, the small ones enlarged to that size:
    uint8 (n, 1 + V, C, h, w)."""
    first = data.images[:images]
    stream = generator("cpu", "views", recipe.seed, "sample")
    make_view = Views(recipe.augmentation, recipe.normalisation)
    views = [make_view(first, stream) for _ in range(recipe.views)]
    make_local, size = Views(recipe.augmentation.of_local, recipe.normalisation), views[0].shape[2:]
    views += [
        F.interpolate(make_local(first, stream), size, mode="nearest-exact")
        for _ in range(recipe.augmentation.local_views)
    ]
    originals = F.interpolate(normalise(first, recipe.normalisation), size, mode="bilinear", antialias=True)
    shown = denormalise(torch.stack([originals, *views], dim=1), recipe.normalisation)
    save_array(run.file(VIEWS), shown.numpy())


def finish(run: Run, recipe: Recipe, data: ImageSet, state: State) -> None:
    """Write the encoder, the losses and the scores of a run. A run that trained nothing has no losses."""
    save_tensors(run.file(ENCODER), state.kept())
    part = state.step % len(state.losses)  # steps of an epoch that the time budget cut short
    losses = state.epoch_losses + [mean(state.losses[:part])] * (part > 0)
    if losses:
        save_array(run.file(LOSS), np.array(losses, dtype=np.float64))
    images_seen = state.step * recipe.batch_size
    forwards = 1 if len(distributed.parts_of(recipe.batch_size, recipe.micro_batch)) == 1 else 2
    _, channels, height, width = data.images.shape
    flops = 0.0 if recipe.as_given else flops_of_view(recipe, state.method, channels, height, width, forwards)
    run.update_scores(
        method=recipe.method,
        supervised=isinstance(state.method, SupervisedMethod),
        encoder=recipe.encoder,
        data=recipe.data,
        image_shape=list(data.images.shape[1:]),
        seed=recipe.seed,
        epochs=round(state.step / len(state.losses), 2) if part else state.step // len(state.losses),
        views_seen=images_seen * recipe.all_views,
        train_seconds=state.seconds,
        **({"images_per_second": images_seen / state.seconds, "loss": losses[-1]} if losses else {}),
        **({"first_step_seconds": state.first_step} if state.first_step else {}),
        pflop=flops * images_seen * recipe.all_views / 1e15,
        device=describe(state.device),
        processes=distributed.world(),
        precision=str(dtype_of(recipe.precision, state.device)).removeprefix("torch."),
        torch=torch.__version__,
    )
