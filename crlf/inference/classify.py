"""Classifies images: writes a CSV table of files, classes and probabilities."""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from crlf.data.files import listing
from crlf.data.files.decode_cache import csv_text, look_into
from crlf.data.files.listing import File
from crlf.errors import InputError
from crlf.evaluation import classifier
from crlf.evaluation.classifier import Loaded
from crlf.runs.files import write_bytes
from crlf.runs.run import Run
from crlf.runtime.devices import pick_device

HEAD = ("file", "class", "probability", "skipped")


def classify(
    run: Run | str | Path,
    images: Sequence[str],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    follow_links: bool = False,
    device: str = "auto",
    batch_size: int = 256,
) -> list[tuple[str, str, float]]:
    """Classify images with a classifier made by `crlf finetune`.

    The table has one row per file: its name, the most likely class and its probability, or for a file that is not an
    image the reason. Cells that a spreadsheet would read as a formula start with an apostrophe.

    Args:
        run: the run folder, or the folder of a classifier.
        images: image files, or folders of images.
        out: the CSV file to write; by default the table is printed.
        overwrite: replace an existing file.
        follow_links: follow symbolic links that lead out of a folder.
        device: where to compute: cpu, cuda, mps, or auto for the first available of cuda, mps and cpu.
        batch_size: images per batch.

    Returns:
        (file, class, probability) of each image.

    Raises:
        InputError: the folder holds no classifier, a path does not exist, or no file is an image.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    table = None if out is None else Path(out)
    if table is not None and table.exists() and not overwrite:
        raise InputError(f"output file {str(table)!r} already exists: --overwrite replaces it")
    loaded, place = classifier.load(run.path if isinstance(run, Run) else Path(run)), pick_device(device)
    files = named([images] if isinstance(images, str) else images, follow_links)
    loaded.model.to(place)
    rows = list(told(loaded, files, batch_size))
    if not any(name for _, name, _, _ in rows):
        raise InputError(f"none of {len(rows):,} files is an image; the first is {rows[0][0]!r}: {rows[0][3]}")
    text = csv_text(HEAD, [(file, name, f"{p:.4f}" if name else "", why) for file, name, p, why in rows])
    if table is None:
        write(text)
    else:
        write_bytes(table, text.encode("utf-8", "backslashreplace"))
    return [(file, name, p) for file, name, p, _ in rows if name]


def named(paths: Sequence[str], follow_links: bool) -> list[File]:
    """The files at these paths, and those in the folders among them.

    Raises:
        InputError: a path does not exist, or none is given.
    """
    if not paths:
        raise InputError("images must name a file or a folder, but none is given")
    found: list[File] = []
    for path in map(os.fspath, paths):
        if not os.path.exists(path):
            raise InputError(f"image {path!r} does not exist")
        if os.path.isdir(path):
            inside = listing.in_folder(Path(path), follow_links)
            found += [File(os.path.join(path, f.name), f.path, f.size, f.mtime, f.skipped) for f in inside]
        else:
            found.append(listing.look_at(path, path))
    return found


def told(loaded: Loaded, files: Sequence[File], batch_size: int) -> Iterator[tuple[str, str, float, str]]:
    """(file, class, probability, why it was skipped) of each file, in order."""
    settings, (channels, side, width) = loaded.recipe.images, loaded.shape
    if channels != 3 or side != width:
        raise InputError(f"files give square images of 3 channels, but the classifier needs {loaded.shape}")
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of slightly malformed files
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            looked = list(pool.map(lambda file: look_into(file, side, settings.max_pixels, settings.white), part))
            yield from judged(loaded, part, looked)


def judged(loaded: Loaded, files: Sequence[File], looked: Sequence[tuple]) -> Iterator[tuple[str, str, float, str]]:
    pixels = [image for image, _ in looked if image is not None]
    stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)
    p = classifier.probabilities(loaded.model, stacked, loaded.recipe.normalisation) if pixels else np.empty((0, 1))
    rows = iter(p)
    for file, (image, outcome) in zip(files, looked, strict=True):
        if image is None:
            yield file.name, "", 0.0, outcome.skipped
        else:
            row = next(rows)
            yield file.name, loaded.classes[int(row.argmax())], float(row.max()), ""


def write(text: str) -> None:
    """Print a text, escaping bytes that are not valid text and, on a terminal, control characters."""
    encoding = sys.stdout.encoding or "utf-8"
    if sys.stdout.isatty():
        text = "".join(
            repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" and letter != "\n" else letter for letter in text
        )
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
