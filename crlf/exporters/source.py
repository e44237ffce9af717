"""The input and the result of an export: a trained network on pixels, and its exported files."""

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
    """A trained network to export, for images of a shape (C, H, W)."""

    network: Callable[[Recipe], Frozen | Classifier]
    """Makes the network with the regions and mirror image of a recipe: normalised float (B, C, H, W) -> embeddings
    float (B, D), or logits (B, K)."""
    recipe: Recipe
    shape: torch.Size
    classes: tuple[str, ...] = ()
    """The class names of a classifier, in the order of its outputs; empty for an encoder."""

    @property
    def verb(self) -> str:
        """The name of the function and the module of the code."""
        return "classify" if self.classes else "embed"

    @property
    def rows(self) -> str:
        """The name of the output."""
        return "probabilities" if self.classes else "embeddings"


def encoder_of(run: Run, shape: torch.Size) -> Source:
    """The frozen encoder of a run."""
    return Source(lambda recipe: load_encoder(run, recipe, shape), run.recipe, shape)


def classifier_of(loaded: Loaded) -> Source:
    """A classifier made by `crlf finetune`."""
    return Source(lambda recipe: loaded.model, loaded.recipe, torch.Size(loaded.shape), tuple(loaded.classes))


class Exported(NamedTuple):
    """A network in an export format."""

    module: nn.Module
    """The network that the files must match: uint8 (B, C, H, W) -> float32 (B, D), or class probabilities (B, K)."""
    code: str
    """The code of embed.py or classify.py, which the card shows. It loads the files in the current folder and defines
    `embed`, or `classify` and the list `classes`, on numpy arrays."""
    embedding: str
    """A description of the embedding."""
    library: str
    """The name on the Hugging Face Hub of the library that loads it."""
    needs: str
    """The packages that the code needs, for pip."""
    notes: str = ""
    """Further notes for users, in Markdown."""


class FromPixels(nn.Module):
    """Stored images to embeddings, uint8 (B, C, H, W) -> float32 (B, D), or to probabilities, (B, K).

    The normalisation is part of the module, so pixels cannot have the wrong scale, and images take a quarter of the
    bytes of float32. It equals `embed_images`, or `crlf.evaluation.classifier.probabilities` for a classifier.
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
    """The module that computes the run's embeddings, or the classifier's probabilities."""
    return FromPixels(source.network(source.recipe), source.recipe, source.shape[0])


def code(source: Source, module: nn.Module, imports: str, load: str, classes: str, body: str) -> str:
    """The text of embed.py, or of classify.py, which also has the class names.

    Args:
        source: the network.
        module: the network on pixels.
        imports: the import statements.
        load: the statements that load the model.
        classes: an expression for the class names.
        body: the body of the function of `images`.
    """
    if source.classes:
        imports = f"import json\n\n{imports}" if "json" in classes else imports
        load += f"\nclasses = {classes}"
    return f"{imports}\n\n{load}\n\n\ndef {source.verb}(images):  # {contract(module, source)}\n{body}\n"


def contract(module: nn.Module, source: Source) -> str:
    """The input and output of the function, as a comment in the code."""
    shape = ", ".join(map(str, source.shape))
    with torch.no_grad():
        width = module(torch.zeros(1, *source.shape, dtype=torch.uint8)).shape[1]
    meant = ", column k the probability of classes[k]" if source.classes else ""
    return f"numpy uint8 (B, {shape}) -> float32 (B, {width}){meant}"
