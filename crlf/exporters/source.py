"""What an export begins with and ends with: a trained network on the pixels of images, and what was made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crlf.embedding.embed import load_encoder
from crlf.encoders import Frozen
from crlf.evaluation.classifier import Classifier, Loaded
from crlf.recipe import Recipe
from crlf.runs.run import Run


class Source(NamedTuple):
    """What is exported: a trained network for images of a shape (C, H, W)."""

    network: Callable[[Recipe], Frozen | Classifier]
    """Makes it, with the regions and the mirror image that a recipe says: normalised float (B, C, H, W) -> embeddings
    float (B, D), or logits (B, K)."""
    recipe: Recipe
    shape: torch.Size
    classes: tuple[str, ...] = ()
    """Of a classifier, in the order of its outputs; an encoder has none."""

    @property
    def verb(self) -> str:
        """The function that the code defines, in the module of its name."""
        return "classify" if self.classes else "embed"

    @property
    def rows(self) -> str:
        """What comes out."""
        return "probabilities" if self.classes else "embeddings"


def encoder_of(run: Run, shape: torch.Size) -> Source:
    """The frozen encoder of a run."""
    return Source(lambda recipe: load_encoder(run, recipe, shape), run.recipe, shape)


def classifier_of(loaded: Loaded) -> Source:
    """A classifier that `crlf finetune` made."""
    return Source(lambda recipe: loaded.model, loaded.recipe, torch.Size(loaded.shape), tuple(loaded.classes))


class Exported(NamedTuple):
    """What a format made of a network."""

    module: nn.Module
    """What the files must equal: uint8 (B, C, H, W) -> float32 (B, D), or the probabilities of classes (B, K)."""
    code: str
    """A module that loads the files in the current folder and defines `embed`, or `classify` and the list `classes`:
    the same on numpy arrays. It is written as embed.py or classify.py, and the card shows it."""
    embedding: str
    """In words, what the embedding of an image is."""
    library: str
    """The Hugging Face hub's name for what loads it."""
    needs: str
    """What pip installs for the code."""
    notes: str = ""
    """What else a user should know, Markdown."""


class FromPixels(nn.Module):
    """Images as they are stored to embeddings, uint8 (B, C, H, W) -> float32 (B, D), or to probabilities, (B, K).

    The normalisation lies inside, so that nobody can feed pixels of another scale, and an image travels in a quarter
    of the bytes of float32. Equals `embed_images`, and of a classifier `crlf.evaluation.classifier.probabilities`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Frozen | Classifier, recipe: Recipe, channels: int):
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)
        self.last = nn.Softmax(dim=1) if isinstance(network, Classifier) else nn.Identity()
        for name, values in statistics(recipe, channels).items():
            self.register_buffer(name, torch.tensor(values).view(1, channels, 1, 1).clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.network((images.float() / 255 - self.mean) / self.std))


def statistics(recipe: Recipe, channels: int) -> dict[str, list[float]]:
    """The mean and the standard deviation of each channel, in 0..1."""
    mean, std = recipe.normalisation.numbers(channels)
    return {"mean": list(mean), "std": list(std)}


def from_pixels(source: Source) -> FromPixels:
    """What the run's own embeddings, or the classifier's own probabilities, come from."""
    return FromPixels(source.network(source.recipe), source.recipe, source.shape[0])


def code(source: Source, module: nn.Module, imports: str, load: str, classes: str, body: str) -> str:
    """The text of embed.py, or of classify.py, which has the names of the classes too.

    Args:
        load: makes the model.
        classes: an expression for their names.
        body: of the function of `images`.
    """
    if source.classes:
        imports = f"import json\n\n{imports}" if "json" in classes else imports
        load += f"\nclasses = {classes}"
    return f"{imports}\n\n{load}\n\n\ndef {source.verb}(images):  # {contract(module, source)}\n{body}\n"


def contract(module: nn.Module, source: Source) -> str:
    """What goes in and comes out, as a comment of the code."""
    shape = ", ".join(map(str, source.shape))
    with torch.no_grad():
        width = module(torch.zeros(1, *source.shape, dtype=torch.uint8)).shape[1]
    meant = ", column k the probability of classes[k]" if source.classes else ""
    return f"numpy uint8 (B, {shape}) -> float32 (B, {width}){meant}"
