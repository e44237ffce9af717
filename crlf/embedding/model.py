"""A trained model as it is, as a run: what comes after training works on it as on one that was trained here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from crlf.encoders import EmbeddingSettings, InitSettings
from crlf.encoders.onnx_file import SUFFIX
from crlf.recipe import RECIPES
from crlf.runs.run import Run
from crlf.training.pretrain import pretrain

OUT = "simclr_output"


def adopt(
    images: str | Path,
    model: str,
    *,
    out: str | Path = OUT,
    data_dir: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Run:
    """A run of which nothing is trained: its encoder is a model as it comes.

    Args:
        images: what it is to be used on, as `crlf pretrain` takes it.
        model: where the weights are, as `--init` takes it; the network must be known with them.

    Raises:
        InputError: there is no such model, or it is a file that does not say of which network.
    """
    recipe = dataclasses.replace(RECIPES["default"], data=str(images), start=InitSettings(init=model), epochs=0)
    if model.lower().endswith(SUFFIX):  # it gives what the file gives, once
        recipe = dataclasses.replace(recipe, embedding=EmbeddingSettings(regions=1, mirror=False))
    return pretrain(recipe, out=out, data_dir=data_dir, device=device, overwrite=overwrite)
