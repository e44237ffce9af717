"""A trained encoder, ready to use: it takes images as they are and prepares them as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crlf.data.in_memory import Images, batches
from crlf.embedding.embed import embed_images, image_shape, load_encoder
from crlf.encoders import Frozen
from crlf.errors import InputError
from crlf.normalisation import normalise
from crlf.recipe import Recipe
from crlf.runs.run import Run
from crlf.runtime.devices import keep_freed_memory, pick_device


class Encoder:
    """A frozen encoder with its preprocessing. `crlf.load(RUN)` makes it from a run.

    Args:
        module: the network, normalised float (B, C, H, W) -> float (B, D), on its device.
        recipe: every setting of the run.
        shape: (C, H, W) of the images that it was trained on.
        classes: the names of the run's classes, where it has such; the network never saw them.
    """

    def __init__(self, module: Frozen, recipe: Recipe, shape: tuple[int, int, int], classes: Sequence[str] = ()):
        self.module, self.recipe, self.shape, self.classes = module, recipe, shape, tuple(classes)

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return f"Encoder({self.recipe.encoder!r}: {channels} × {height} × {width} pixels to {self.dim} numbers)"

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.module.out_dim

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def normalise(self, images: Tensor) -> Tensor:
        """What the module takes: uint8 (B, C, H, W) -> float32 (B, C, H, W), channels last."""
        return normalise(images, self.recipe.normalisation)

    def encode(self, images: Images, *, batch_size: int = 500) -> np.ndarray:
        """Embed images.

        Args:
            images: the path of a file, a PIL image or a uint8 array, or any number of these, also of a generator. Files
                and PIL images are turned upright, scaled and cut to the size of training; an array must have it. An
                array is (N, H, W, C), (N, C, H, W) or (N, H, W), or one image without the N; of three dimensions it is
                one image where the last is 1, 3 or 4 or the first is 3, and else N gray ones.
            batch_size: images that are embedded at once.

        Returns:
            float32 (N, D), row i for image i; of one image (1, D).

        Raises:
            InputError: an image cannot be read, or does not fit; says which.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}")
        found = batches(images, self.shape, self.recipe.images, batch_size)
        rows = [embed_images(self.module, batch, self.recipe.normalisation, batch_size) for batch in found]
        return np.concatenate([np.empty((0, self.dim), np.float32), *rows])


def load(run: Run | str | Path, *, device: str = "auto") -> Encoder:
    """The trained encoder of a run, ready to use.

    Args:
        run: the run, or its folder; only recipe.json, scores.json and the weights in it are read.
        device: cpu, cuda, mps, or auto for the best that is there.

    Raises:
        InputError: there is no trained run, or its files are damaged.
    """
    keep_freed_memory()
    run, place = Run.open(run), pick_device(device)
    recipe, shape = run.recipe, image_shape(run)
    return Encoder(load_encoder(run, recipe, torch.Size(shape)).to(place), recipe, shape, run.classes)
