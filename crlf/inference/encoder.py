"""A trained encoder with its preprocessing, ready to use on new images."""

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
from crlf.runtime.devices import pick_device


class Encoder:
    """A frozen encoder with its preprocessing, loaded by `crlf.load(RUN)`.

    Args:
        module: the network, normalised float (B, C, H, W) -> float (B, D), on its device.
        recipe: the settings of the run.
        shape: (C, H, W) of the images that it was trained on.
        classes: the class names of the run, if it has any; the network never saw labels.
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
        """Prepare images for the module: uint8 (B, C, H, W) -> float32 (B, C, H, W), channels last."""
        return normalise(images, self.recipe.normalisation)

    def encode(self, images: Images, *, batch_size: int = 500) -> np.ndarray:
        """Embed images.

        Args:
            images: the path of a file, a PIL image or a uint8 array, or a sequence or generator of these. Files and PIL
                images are rotated upright, resized and cropped to the training size; arrays must have this size. An
                array is (N, H, W, C), (N, C, H, W) or (N, H, W), or a single image without N. An array of three
                dimensions is one image if its last dimension is 1, 3 or 4 or its first is 3, and else N gray images.
            batch_size: images per batch.

        Returns:
            float32 (N, D), row i for image i; (1, D) for a single image.

        Raises:
            InputError: an image cannot be read or has the wrong size; the message names it.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}")
        found = batches(images, self.shape, self.recipe.images, batch_size)
        rows = [embed_images(self.module, batch, self.recipe.normalisation, batch_size) for batch in found]
        return np.concatenate([np.empty((0, self.dim), np.float32), *rows])


def load(run: Run | str | Path, *, device: str = "auto") -> Encoder:
    """Load the trained encoder of a run.

    Args:
        run: the run or its folder; only recipe.json, scores.json, classes.json and the weights are read.
        device: where to compute: cpu, cuda, mps, or auto for the best available.

    Raises:
        InputError: the folder holds no trained run, or its files are damaged.
    """
    run, place = Run.open(run), pick_device(device)
    recipe, shape = run.recipe, image_shape(run)
    return Encoder(load_encoder(run, recipe, torch.Size(shape)).to(place), recipe, shape, run.classes)
