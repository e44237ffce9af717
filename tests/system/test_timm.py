"""Every family of timm's models: its smallest takes a step on a folder without labels and embeds it, or is refused.

A family of which even that one has `LARGEST` weights is named and left out: it would take minutes and gigabytes. What
timm.json holds of the same version of timm, and did not fail, is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from tiny_images import encoded, pixels

import crlf
from crlf.augmentation import ViewSettings
from crlf.data import ImageSettings
from crlf.errors import InputError
from crlf.optim import OptimSettings
from crlf.recipe import Recipe

pytestmark = pytest.mark.system
MOST_REFUSED = 0.05  # of the families
MOST_LARGE = 0.03
MOST_ALIKE = 0.02
LARGEST = 150e6  # weights


def smallest(family: str) -> tuple[str, int]:
    """The model of the fewest weights in a module of timm, and how many; they are counted without being made."""

    def weights(name: str) -> int:
        with torch.device("meta"):
            return sum(weight.numel() for weight in timm.create_model(name, num_classes=0).parameters())

    return min(((name, weights(name)) for name in timm.list_models(module=family)), key=lambda found: found[1])


def sizes(model: str) -> list[int]:
    """Pixels along a side: few, and if it does not take those, what it was made for."""
    return sorted({64, timm.get_pretrained_cfg(model, allow_unregistered=False).input_size[-1]})


def learned(model: str, size: int, photos: Path, folder: Path) -> dict[str, Any]:
    """The width of the embeddings after a run of two steps, and whether they are all alike: a deep network whose batch
    norms have hardly begun may let nothing of an image through."""
    recipe = Recipe(
        encoder=f"timm:{model}", data=str(photos), images=ImageSettings(image_size=size), batch_size=3, views=2,
        augmentation=ViewSettings(resolution=1.0), optim=OptimSettings(optimizer="sgd", lr=0.01), epochs=1,
        precision="float32",
    )  # fmt: skip
    crlf.embed(crlf.pretrain(recipe, out=folder / "run", device="cpu"), photos, out=folder / "table.parquet")
    rows = np.stack(pq.read_table(folder / "table.parquet")["embedding"].to_numpy(zero_copy_only=False))
    assert len(rows) == 6 and np.isfinite(rows).all()
    return {"dimensions": rows.shape[1], **({} if len(np.unique(rows, axis=0)) == 6 else {"alike": True})}


@pytest.fixture
def photos(tmp_path: Path, cache: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    return folder


def test_every_family(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: Callable[[str, list[dict[str, Any]]], None],
    kept: Callable[[str], list[dict[str, Any]]],
):
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    known = {row["family"]: row for row in kept("timm") if row.get("timm") == timm.__version__ and "size" in row}
    rows = []
    for family in timm.list_modules():
        if not timm.list_models(module=family):
            continue
        if family in known:
            rows.append(known[family])
            continue
        model, weights = smallest(family)
        row: dict[str, Any] = {"family": family, "model": model, "weights": weights, "timm": timm.__version__}
        for size in sizes(model) if weights < LARGEST else []:
            try:
                row |= {"size": size, **learned(model, size, photos, tmp_path / f"{model}-{size}")}
                row.pop("refused", None)
                break
            except InputError as error:
                assert "\n" not in str(error)
                row["refused"] = str(error)
            except Exception as error:  # the others are tried all the same
                row["failed"] = repr(error)
                break
        rows.append(row)
        print(row)
        keep("timm", rows)
    keep("timm", rows)
    assert not [row for row in rows if "failed" in row]
    assert sum("alike" in row for row in rows) <= MOST_ALIKE * len(rows), rows
    assert sum("size" not in row and "refused" not in row for row in rows) <= MOST_LARGE * len(rows), rows
    assert len(rows) > 80 and sum("refused" in row for row in rows) <= MOST_REFUSED * len(rows), rows
