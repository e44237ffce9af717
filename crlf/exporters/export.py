"""Exports an encoder or a classifier in a format that other programs load, and checks the result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crlf.errors import InputError, first_line, unknown
from crlf.runs.files import write_bytes, write_json
from crlf.runs.run import CLASSIFIER, RECIPE, Run

if TYPE_CHECKING:
    from torch import Tensor

    from crlf.evaluation.classifier import Loaded
    from crlf.exporters.source import Exported, Source
    from crlf.recipe import Recipe

CARD, RECORD = "README.md", "export.json"
TOLERANCE = 1e-4  # relative to the largest number of an embedding, or to 1 if that is smaller
PROBABILITY = 1e-5  # the same for a classifier's probabilities
IMAGES = 64  # images for the comparison

# Run in the export's folder, where there is no CRLF: batches of 1, 3 and the rest.
FRESH = """
import importlib, sys
sys.modules["crlf"] = None
import numpy as np
function = getattr(importlib.import_module(sys.argv[3]), sys.argv[3])
parts = np.split(np.load(sys.argv[1]), [1, 4])
np.save(sys.argv[2], np.concatenate([function(part) for part in parts if len(part)]))
"""


def export(
    run: Run | str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    license: str = "other",
    data_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Export the frozen encoder of a run, or a classifier, with a model card. The files load without CRLF.

    A fresh process without CRLF loads the export by the embed.py or classify.py that the card shows. Its output is
    compared on training images, or on noise if they are missing. A difference above 1e-4 (relative to the largest
    number, if that is above 1), or above 1e-5 for the probabilities of a classifier, is an error.

    Args:
        run: the run folder, or the folder of a classifier made by `crlf finetune`.
        format: the kind of export: timm (safetensors and config.json), onnx, or torch (torch.export).
        out: the folder to write; by default a folder named after the format, in RUN.
        license: the licence of the weights for the model card, such as cc-by-4.0.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        overwrite: replace an existing export.

    Returns:
        The folder. It holds the model, embed.py or classify.py, README.md (the card), recipe.json, and export.json with
        the largest difference and, for a classifier, the class names, which the model file has too.

    Raises:
        InputError: an unknown format, one that does not support the network, a missing library, a folder in use, or an
            export whose output differs from the network's. Nothing is left then.
    """
    run = opened(run)
    from crlf.exporters.formats import FORMATS  # brings torch

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    folder = Path(out) if out is not None else run.file(format)
    with fresh_folder(folder, overwrite) as made:
        record = (write_classifier if is_classifier(run) else write)(run, made, format, license, data_dir)
    print(f"wrote {folder}: {', '.join(record['files'])}")
    print(
        f"checked in a fresh process without CRLF on {record['images']} {record['images_are']}: "
        f"largest difference {record['max_difference']:.1e}"
    )
    return folder


def opened(run: Run | str | Path) -> Run:
    """The folder of a run, or of a classifier.

    Raises:
        InputError: it is neither.
    """
    folder = run if isinstance(run, Run) else Run(run)
    return folder if is_classifier(folder) else Run.open(folder)


def is_classifier(folder: Run) -> bool:
    """Whether this is a folder that `crlf finetune` wrote."""
    return folder.file(CLASSIFIER).is_file()


def write(run: Run, folder: Path, format: str, license: str, data_dir: str | Path | None) -> dict[str, Any]:
    """Write an export of an encoder to an empty folder, check it, and return the contents of export.json."""
    from crlf.exporters.formats import FORMATS
    from crlf.exporters.model_card import card
    from crlf.exporters.source import encoder_of

    recipe = run.recipe
    images, kind = some_images(run, recipe, data_dir)
    source = encoder_of(run, images.shape[1:])
    made = FORMATS[format](source, folder)
    record = checked(made, source, images, folder) | {"format": format, "images_are": kind}
    return finish(folder, recipe, card(run, made, record, license), record)


def write_classifier(run: Run, folder: Path, format: str, license: str, data_dir: str | Path | None) -> dict[str, Any]:
    """The same for a classifier."""
    from crlf.evaluation import classifier
    from crlf.exporters.classifier_card import card
    from crlf.exporters.formats import FORMATS
    from crlf.exporters.source import classifier_of

    loaded = classifier.load(run.path)
    images, kind = labelled_images(loaded, data_dir)
    source = classifier_of(loaded)
    made = FORMATS[format](source, folder)
    record = checked(made, source, images, folder) | {"format": format, "images_are": kind}
    record["classes"] = loaded.classes
    return finish(folder, loaded.recipe, card(loaded, run.scores, made, record, license), record)


def checked(made: Exported, source: Source, images: Tensor, folder: Path) -> dict[str, Any]:
    """Write the code that loads a model, compare its output with the network's, and return the record of it."""
    import torch

    write_bytes(folder / f"{source.verb}.py", made.code.encode())
    record: dict[str, Any] = {
        "input": f"uint8 (B, {', '.join(map(str, images.shape[1:]))})",
        "embedding": made.embedding,
        "torch": torch.__version__,
        "images": len(images),
    }
    return record | compare(made, images, folder, source.verb, PROBABILITY if source.classes else TOLERANCE)


def finish(folder: Path, recipe: Recipe, card: str, record: dict[str, Any]) -> dict[str, Any]:
    """Write the card, the recipe and the record, which names all files, and return it."""
    from crlf.exporters.model_card import public

    write_bytes(folder / CARD, card.encode("utf-8", "backslashreplace"))  # a folder name may not be valid text
    write_json(folder / RECIPE, public(recipe))
    record["files"] = sorted({path.name for path in folder.iterdir()} | {RECORD})
    write_json(folder / RECORD, record)
    return record


def some_images(run: Run, recipe: Recipe, data_dir: str | Path | None) -> tuple[Tensor, str]:
    """Images for the comparison, uint8 (B, C, H, W), and a description; noise if the run stores no images."""
    from crlf.data import given, load
    from crlf.embedding.embed import image_shape

    if not given.is_given(recipe.data):
        return load(recipe.data, data_dir, recipe.images)[0].first(IMAGES).decoded, "images of the run"
    return noise(image_shape(run)), "images of noise"


def labelled_images(loaded: Loaded, data_dir: str | Path | None) -> tuple[Tensor, str]:
    """Training images of a classifier, uint8 (B, C, H, W), and a description; noise if they are missing."""
    from crlf.evaluation import labelled

    try:
        data, test = str(loaded.how.get("data", "")), loaded.how.get("test")
        settings = labelled.settings_of(loaded.recipe, data)
        images = labelled.first(data, test, loaded.shape, settings, data_dir, IMAGES)
    except InputError:  # the images may be on another machine
        return noise(loaded.shape), "images of noise"
    return images, "images that it learned from"


def noise(shape: tuple[int, int, int]) -> Tensor:
    """Images of noise: uint8 (B, C, H, W)."""
    import torch

    stream = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, *shape), generator=stream, dtype=torch.uint8)


def compare(
    made: Exported, images: Tensor, folder: Path, verb: str = "embed", tolerance: float = TOLERANCE
) -> dict[str, float]:
    """The largest difference between the output of the files in a fresh process and that of the network.

    Raises:
        InputError: the process failed, or the difference is above the tolerance.
    """
    import torch

    with torch.no_grad():
        expected = made.module(images).numpy()
    found = in_fresh_process(images.numpy(), folder, verb)
    if found.shape != expected.shape:
        raise InputError(f"the export returns {found.shape}, but the run returns {expected.shape}")
    largest, difference = float(np.abs(expected).max()), float(np.abs(found - expected).max())
    if not difference <= tolerance * max(1.0, largest):
        what = f"the export differs from the run by {difference:.1e} (largest number {largest:.3g})"
        raise InputError(f"{what}; at most {tolerance:.0e} of it is allowed, so nothing was written")
    return {"max_difference": difference, "largest_number": largest}


def in_fresh_process(images: np.ndarray, folder: Path, verb: str = "embed") -> np.ndarray:
    """The output of the folder's embed.py or classify.py in a process that cannot import CRLF: uint8 (B, C, H, W) ->
    float32 (B, D) or (B, K)."""
    with tempfile.TemporaryDirectory() as place:
        given, found = Path(place, "images.npy"), Path(place, "embeddings.npy")
        np.save(given, images)
        command = [sys.executable, "-B", "-c", FRESH, str(given), str(found), verb]
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"the export does not load in a fresh process: {last[:200]}")
        return np.load(found)


@contextlib.contextmanager
def fresh_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder that replaces `folder` when the block ends without an error, and is removed otherwise.

    Raises:
        InputError: the folder holds an export and may not be replaced, holds anything else, or cannot be written.
    """
    where = f"export folder {str(folder)!r}"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{where} is a file: choose another --out")
    if folder.is_dir() and (others := foreign(folder)):
        raise InputError(f"{where} holds {others[0]!r}, which is not part of an export: choose another --out")
    if folder.is_dir() and os.listdir(folder) and not overwrite:
        raise InputError(f"{where} holds an export: --overwrite replaces it")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=".export."))
    except OSError as error:
        raise InputError(f"{where} cannot be written: {error.strerror}") from error
    try:
        yield made
        os.chmod(made, 0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(made, folder)
    except OSError as error:
        raise InputError(f"{where} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def foreign(folder: Path) -> list[str]:
    """The files in the folder that no export wrote."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        files = []
    return sorted(set(os.listdir(folder)) - set(files))
