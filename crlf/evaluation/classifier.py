"""A classifier: an encoder with a linear layer on its embeddings, and the folder that stores it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crlf import encoders
from crlf.errors import InputError
from crlf.evaluation.logistic_regression import Linear
from crlf.normalisation import Normalisation, normalise
from crlf.recipe import Recipe
from crlf.runs.files import read_json, save_tensors, write_json
from crlf.runs.run import CLASSES, CLASSIFIER, CLASSIFIER_WEIGHTS, RECIPE, SCORES, Run

FOLDER = "classifier"  # default folder, in the run folder
FILES = (CLASSIFIER, CLASSIFIER_WEIGHTS, CLASSES, SCORES)


class Classifier(nn.Module):
    """float (B, C, H, W) -> logits float (B, K).

    The embedding is that of the run (crlf.encoders.Frozen): in evaluation mode, if the run's settings say so, the mean
    over the image and its mirror image.
    """

    def __init__(self, encoder: nn.Module, classes: int, mirror: bool):
        super().__init__()
        self.encoder, self.mirror = encoder, mirror
        self.head = nn.Linear(encoder.out_dim, classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)  # (B, D)
        if self.mirror and not self.training:
            h = (h + self.encoder(x.flip(3))) / 2
        return self.head(h)

    @torch.no_grad()
    def start_from(self, probe: Linear) -> None:
        """Take over a linear probe on standardised embeddings: W (h - mean) / scale + b = (W / scale) h + …."""
        weight = probe.weights / probe.scale  # (K, D)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(probe.bias - weight @ probe.mean)

    @torch.no_grad()
    def cool(self, temperature: float) -> None:
        """Divide the logits by a temperature, in the weights."""
        self.head.weight.div_(temperature)
        self.head.bias.div_(temperature)


def build(recipe: Recipe, shape: Sequence[int], classes: int) -> Classifier:
    """An untrained classifier for images of this shape (C, H, W)."""
    encoder = encoders.build(recipe.encoder, shape[0], min(shape[1:]), recipe.embedding.regions)
    return Classifier(encoder, classes, recipe.embedding.mirror)


@torch.no_grad()
def probabilities(model: Classifier, images: Tensor, by: Normalisation, batch_size: int = 500) -> np.ndarray:
    """Class probabilities: uint8 (N, C, H, W) on any device -> float32 (N, K). The model must be in evaluation mode."""
    assert not model.training, "a classifier is used in evaluation mode"
    device = model.head.weight.device
    rows = [model(normalise(batch.to(device), by)).float().softmax(dim=1).cpu() for batch in images.split(batch_size)]
    return torch.cat(rows).numpy()


# In a folder


class Loaded(NamedTuple):
    """A classifier, ready to use."""

    model: Classifier
    classes: list[str]
    recipe: Recipe
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    how: dict[str, Any]
    """The arguments of `crlf finetune`."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise InputError if the folder holds a run, or a classifier that must not be replaced, or cannot be created."""
    held = [name for name in FILES if (folder / name).exists()]
    if (folder / RECIPE).exists():
        raise InputError(f"output folder {str(folder)!r} holds a run: a classifier needs its own folder")
    if held and not overwrite:
        raise InputError(f"output folder {str(folder)!r} holds a classifier: --overwrite replaces it")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise InputError(f"output folder {str(folder)!r} cannot be created: {str(there)!r} is a file")


def save(folder: Path, model: Classifier, classes: Sequence[str], made_from: dict[str, Any], scores: Any) -> None:
    """Write a classifier. classifier.json is written last, so a folder with this file is complete.

    Args:
        made_from: "recipe" and "image_shape" of the run, and the arguments of fine-tuning.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CLASSIFIER).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"output folder {str(folder)!r} cannot be written: {error.strerror}") from error
    save_tensors(folder / CLASSIFIER_WEIGHTS, {name: value.cpu() for name, value in model.state_dict().items()})
    write_json(folder / CLASSES, list(classes))
    write_json(folder / SCORES, scores)
    write_json(folder / CLASSIFIER, made_from)


def load(path: Path) -> Loaded:
    """Load the classifier in a folder, or in a run folder.

    Raises:
        InputError: the folder holds no classifier, or its files are damaged.
    """
    if not path.is_dir():
        raise InputError(f"folder {str(path)!r} does not exist")
    folder = path if (path / CLASSIFIER).exists() else path / FOLDER
    if not (folder / CLASSIFIER).exists():
        why = "has no classifier" if (path / RECIPE).exists() else "holds no run and no classifier"
        raise InputError(f"folder {str(path)!r} {why}: `crlf finetune` makes one")
    made_from, classes = (
        read_json(folder / CLASSIFIER, dict),
        read_json(folder / CLASSES, list),
    )
    weights = Run(folder).tensors(CLASSIFIER_WEIGHTS)
    try:
        recipe, shape = Recipe.from_dict(made_from["recipe"]), tuple(int(n) for n in made_from["image_shape"])
        model = build(recipe, shape, len(classes))
        model.load_state_dict(weights)
        channels, height, width = shape
        how = dict(made_from["finetune"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"classifier {str(folder)!r} is damaged: {str(error).splitlines()[0]}") from error
    model.eval().requires_grad_(False)
    return Loaded(model, [str(name) for name in classes], recipe, (channels, height, width), how)
