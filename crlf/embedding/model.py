"""Makes a run from a trained model, so that the commands after training work on it."""

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
    """Make a run without training, whose encoder is a trained model.

    Args:
        images: the images to use it on, as for `crlf pretrain`.
        model: the source of the weights, as for `--init`; it must name its network.
        out: the run folder.
        data_dir: the folder of the named data sets; by default the cache.
        device: where to compute: cpu, cuda, mps, or auto for the best available.
        overwrite: replace the run in `out`.

    Raises:
        InputError: the model does not exist, or is a file that does not name its network.
    """
    recipe = dataclasses.replace(RECIPES["default"], data=str(images), start=InitSettings(init=model), epochs=0)
    if model.lower().endswith(SUFFIX):  # the file's own output
        recipe = dataclasses.replace(recipe, embedding=EmbeddingSettings(regions=1, mirror=False))
    return pretrain(recipe, out=out, data_dir=data_dir, device=device, overwrite=overwrite)
