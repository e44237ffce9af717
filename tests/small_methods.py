"""Every method in a size that trains in an instant."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from crlf.encoders import CNN
from crlf.methods import METHODS
from crlf.methods.base import Method, TaughtMethod

SIZE = 16  # of each layer, queue and set of prototypes
LABELS = torch.arange(8) % 3
EVERY = pytest.mark.parametrize("name", METHODS)

TEACHER = "CRLF_TEST_TEACHER"


def narrow(name: str, size: int = SIZE, **other: float):
    """The settings of a small method: every whole number that is large is a width or a length."""
    fields = dataclasses.fields(METHODS[name].Settings)
    sizes = {field.name: size for field in fields if isinstance(field.default, int) and field.default > 100}
    taught = {"teacher": teacher()} if issubclass(METHODS[name], TaughtMethod) else {}
    return METHODS[name].Settings(**{**sizes, **taught, **other})


@functools.cache
def teacher() -> str:
    """A small network of timm, in a folder as timm writes it; ranks take the one that `TEACHER` names."""
    if TEACHER in os.environ:
        return os.environ[TEACHER]
    folder = Path(tempfile.mkdtemp(prefix="teacher")) / "tiny"
    atexit.register(shutil.rmtree, folder.parent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), folder)
    return f"local-dir:{folder}"


def met(method: Method, images: int) -> Method:
    """A method that has been told how many images there are, and what a teacher makes of them."""
    method.meet(images)
    if isinstance(method, TaughtMethod):
        method.learn_from(torch.randn(images, SIZE, generator=torch.Generator().manual_seed(0)))
    return method


def small(name: str, seed: int = 0, **other: float) -> Method:
    torch.manual_seed(seed)
    method = METHODS[name](CNN(3, widths=(4, 8, 8), read=2), narrow(name, **other))
    return met(method, len(LABELS)).train()


def views_of(count: int = 2, batch: int = 8, seed: int = 0) -> list[Tensor]:
    """Views that differ less than their images do."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 12, 12, generator=generator)
    return [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(count)]
