"""Computes the features of a frozen teacher for each image, which a `TaughtMethod` learns to reproduce."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crlf import encoders
from crlf.data import ImageSet, load_for_pretraining, of_files
from crlf.data.encoded import Pixels
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import TaughtMethod
from crlf.normalisation import Normalisation, normalise
from crlf.recipe import Recipe
from crlf.runtime import distributed
from crlf.text import duration
from crlf.training.weights.matching import load
from crlf.training.weights.sources import Weights, read

BATCH = 100  # images that the teacher sees at once


def taught(recipe: Recipe) -> bool:
    return issubclass(METHODS[recipe.method], TaughtMethod)


def teacher_of(recipe: Recipe, start: Weights | None) -> Weights | None:
    """The teacher's weights; None if the method needs no teacher.

    Args:
        start: the weights that the encoder starts from, which are the teacher if no other is named.

    Raises:
        InputError: no teacher is named, or its network is not known.
    """
    if not taught(recipe):
        return None
    source = recipe.head.teacher
    if source or recipe.start.init:
        found = read(source or recipe.start.init) if source or start is None else start
    else:
        raise InputError(f"method {recipe.method!r} needs a teacher: --teacher RUN or timm:NAME, or --init")
    if found.encoder:
        return found
    if not source:
        return dataclasses.replace(found, encoder=recipe.encoder, normalisation=recipe.normalisation)
    how = f"`crlf pretrain PATH --encoder timm:NAME --init {source} --epochs 0` makes a run that can teach"
    raise InputError(f"teacher {source!r} does not name its network: {how}")


def teach(
    recipe: Recipe, teacher: Weights, data: ImageSet, data_dir: str | Path | None, device: torch.device
) -> Tensor:
    """The teacher's features of all training images: float32 (N, T) on the CPU, row i for image i.

    Each image is embedded once, uncropped. Image files are read again at the teacher's size; other images are resized.

    Raises:
        InputError: the teacher does not accept such images.
    """
    begun = time.perf_counter()
    side = wanted_side(recipe, teacher, data)
    images, order = at_size(recipe, data, data_dir, side)
    net = network(recipe, teacher, images.shape[1], side).to(device)
    by = teacher.normalisation if teacher.normalisation.known else recipe.normalisation
    rows = torch.arange(len(images)) if order is None else torch.tensor(order)
    found = torch.cat([features(net, images[part].to(device), by, side) for part in rows.split(BATCH)])
    if not found.isfinite().all():
        raise InputError(f"teacher {teacher.source!r} gives NaN or infinite features: its weights are damaged")
    if distributed.rank() == 0:
        what = f"{len(found):,} images of {side} px, {found.shape[1]:,} features each"
        took = f"in {duration(time.perf_counter() - begun)}"
        licence = f"; licence {teacher.licence}, which also covers the trained encoder" if teacher.licence else ""
        print(f"teacher {teacher.source}: {what}, {took}{licence}", file=sys.stderr)
    return found


def wanted_side(recipe: Recipe, teacher: Weights, data: ImageSet) -> int:
    """Pixels along the shorter side of the teacher's images."""
    own = min(data.images.shape[2:])
    if recipe.head.teacher_size:
        return int(recipe.head.teacher_size)
    return teacher.image_size or own if of_files(recipe.data) else own


def at_size(
    recipe: Recipe, data: ImageSet, data_dir: str | Path | None, side: int
) -> tuple[Pixels, Sequence[int] | None]:
    """The same images, read at a larger size where possible, and their row order; None if the order is the same."""
    own = min(data.images.shape[2:])
    if side <= own or not of_files(recipe.data):
        return data.images, None
    settings = dataclasses.replace(recipe.images, image_size=side)
    larger = load_for_pretraining(recipe.data, data_dir, settings, recipe.subset)
    if list(larger.ids) == list(data.ids):
        return larger.images, None
    rows = {name: row for row, name in enumerate(larger.ids)}
    if missing := [name for name in data.ids if name not in rows]:
        how = f"--teacher-size {own} uses the encoder's size"
        raise InputError(f"image {missing[0]!r} cannot be read at the teacher's {side} px: {how}")
    return larger.images, [rows[name] for name in data.ids]


def network(recipe: Recipe, teacher: Weights, channels: int, side: int) -> nn.Module:
    """The teacher, frozen."""
    try:
        net = encoders.build(teacher.encoder, channels, side)
    except InputError as error:
        raise InputError(f"teacher {teacher.source!r}: {error} (--teacher-size sets the size of its images)") from error
    asked = (
        recipe.start if not recipe.head.teacher else dataclasses.replace(recipe.start, match="name", partial_init=False)
    )
    load(net, teacher, asked)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def features(net: nn.Module, images: Tensor, by: Normalisation, side: int) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, T) on the CPU."""
    x = normalise(images, by)
    height, width = x.shape[2:]
    if min(height, width) != side:
        size = [round(one * side / min(height, width)) for one in (height, width)]
        x = F.interpolate(x, size, mode="bicubic", antialias=True)
    return net(x).float().cpu()
