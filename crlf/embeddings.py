"""Embeddings: a frozen encoder turns each image into a row of numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crlf import encoders, runs
from crlf.data import load
from crlf.devices import keep_freed_memory, pick_device
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs import Run
from crlf.views import ViewSettings, normalise


def embed(
    run: Run | str | Path, *, data_dir: str | Path | None = None, device: str = "auto", batch_size: int = 500
) -> Run:
    """Embed the training and the test images of a run with its frozen encoder.

    Writes train_emb.npy and test_emb.npy, float32 (N, D), the frozen encoder's output (no projector); row i is image i
    of the data set, and entry i of train_ids.json and test_ids.json is its name, for files the relative path. Where
    there are labels also train_lbl.npy and test_lbl.npy, int64 (N,), and classes.json; where there are none the test
    set may be empty.
    """
    keep_freed_memory()
    run, place = Run.open(run), pick_device(device)
    recipe = Recipe.from_dict(run.recipe)
    start = time.perf_counter()
    splits = dict(zip(("train", "test"), load(recipe.data, data_dir, recipe.images, recipe.subset), strict=True))
    encoder: encoders.Frozen | None = None
    for name, split in splits.items():
        if encoder is None:
            encoder = load_encoder(run, recipe, split.images.shape[1:]).to(place)
            run.update_scores(image_shape=list(split.images.shape[1:]))
        rows = embedded(encoder, split.images, recipe.augmentation, batch_size)
        runs.save_rows(run.file(f"{name}_emb.npy"), (len(split), encoder.out_dim), rows)
        runs.write_json(run.file(f"{name}_ids.json"), list(split.ids))
        if split.labels is not None:
            runs.save_array(run.file(f"{name}_lbl.npy"), split.labels.numpy())
            runs.write_json(run.file(runs.CLASSES), list(split.classes))
    run.update_scores(embed_seconds=time.perf_counter() - start, protocol={"embedding": protocol(recipe)})
    return run


def image_shape(run: Run) -> tuple[int, int, int]:
    """The shape of the images that a run was trained on: (C, H, W).

    Raises:
        InputError: the run is not trained, or an older one that did not note it.
    """
    shape = run.scores.get("image_shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)):
        path = str(run.path)
        raise InputError(f"{str(run.file(runs.SCORES))!r} has no image_shape: `crlf embed {path}` notes it there")
    return shape[0], shape[1], shape[2]


def protocol(recipe: Recipe) -> str:
    n = recipe.embedding.regions
    where = "over the whole image" if n == 1 else f"over each of {n} x {n} regions"
    what = f"the frozen encoder's maps averaged {where}"
    if not encoders.has_regions(recipe.encoder):
        what = "the frozen encoder's output"
    return what + ", mean of image and mirror image" * recipe.embedding.mirror


def load_encoder(run: Run, recipe: Recipe, shape: torch.Size) -> encoders.Frozen:
    """The trained encoder of a run, frozen, for images of this shape (C, H, W)."""
    encoder = encoders.build(recipe.encoder, shape[0], min(shape[1:]), recipe.embedding.regions)
    try:
        encoder.load_state_dict(run.tensors(runs.ENCODER))
    except (RuntimeError, TypeError, AttributeError) as error:
        path = str(run.file(runs.ENCODER))
        raise InputError(
            f"{path!r} does not fit the encoder {recipe.encoder!r}: {str(error).splitlines()[0]}"
        ) from error
    return encoders.Frozen(encoder, recipe.embedding.mirror)


def embed_images(encoder: nn.Module, images: Tensor, settings: ViewSettings, batch_size: int = 500) -> np.ndarray:
    """Embed images as they are: uint8 (N, C, H, W) on any device -> float32 (N, D); row i is image i.

    The encoder must be in evaluation mode: then no weight and no batch-norm statistic changes, and a row does not
    depend on the images beside it.
    """
    return np.concatenate(list(embedded(encoder, images, settings, batch_size)))


@torch.no_grad()
def embedded(encoder: nn.Module, images: Tensor, settings: ViewSettings, batch_size: int) -> Iterator[np.ndarray]:
    """The rows of `embed_images` a batch at a time: neither the images nor the rows need to fit in memory."""
    assert not encoder.training, "a frozen encoder is in evaluation mode"
    device = next(encoder.parameters()).device
    for batch in images.split(batch_size):
        yield encoder(normalise(batch.to(device), settings)).float().cpu().numpy()
