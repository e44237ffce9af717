"""The table for embedding-atlas holds each image beside its own embedding, and the command hands it over."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from terminal import refused

import crlf
from crlf import cli
from crlf import data as sources
from crlf.data import ImageSet
from crlf.recipe import Recipe
from crlf.runs.files import save_array
from crlf.runs.run import Run, claim
from crlf.visualization import explore


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a run of random images that was embedded, each row drawn too; the images beside it."""

    def made(channels: int = 3, side: int = 8, labelled: bool = True, subset: int = 0) -> tuple[Run, list[ImageSet]]:
        draw = torch.Generator().manual_seed(0)
        sets = []
        for name, count in (("train", 7), ("test", 3)):
            pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=draw)
            labels = torch.arange(count) % 2 if labelled else None
            ids = [f"{name}/Füchse und Dachse {i}.png" for i in range(count)]
            sets.append(ImageSet(pixels, labels, ("Fuchs", "Dachs") if labelled else (), ids))
        monkeypatch.setitem(sources.SOURCES, "drawn", lambda data_dir: tuple(sets))
        run = claim(tmp_path / "ü run", Recipe(data="drawn", subset=subset).to_dict(), False, True)
        for name, split in zip(("train", "test"), sets, strict=True):
            rows = torch.randn(len(split.first(subset)), 5, generator=draw)
            save_array(run.file(f"{name}_emb.npy"), rows.numpy())
        return run, sets

    return made


def test_each_row_holds_the_image_and_its_embedding(make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(explore, "ROWS", 3)  # so that groups end within a split
    run, sets = make()
    rows = pq.read_table(crlf.explore(run, table_only=True)).to_pylist()
    ids = [name for split in sets for name in split.ids]
    pixels = torch.cat([split.images for split in sets]).permute(0, 2, 3, 1).numpy()
    embeddings = np.concatenate([run.array("train_emb.npy"), run.array("test_emb.npy")])
    assert [row["id"] for row in rows] == ids
    assert [row["split"] for row in rows] == ["train"] * 7 + ["test"] * 3
    assert [row["label"] for row in rows] == ["Fuchs", "Dachs"] * 3 + ["Fuchs"] + ["Fuchs", "Dachs", "Fuchs"]
    for i, row in enumerate(rows):
        assert (np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) == pixels[i]).all()
        assert (np.float32(row["embedding"]) == embeddings[i]).all()


@pytest.mark.parametrize(
    "channels, side, mode, shown", [(1, 8, "L", 8), (4, 8, "RGBA", 8), (2, 8, "L", 8), (3, 200, "RGB", 96)]
)
def test_thumbnails(channels: int, side: int, mode: str, shown: int, make):
    run, _ = make(channels, side, labelled=False)
    row = pq.read_table(crlf.explore(run, split="test", table_only=True)).to_pylist()[0]
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (shown, shown)) and row["label"] is None


def test_embedding_atlas_is_given_the_table(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against a fake package: the real one brings a gigabyte."""
    run, _ = make()
    package = tmp_path / "path" / "embedding_atlas"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text("import json, sys\njson.dump(sys.argv[1:], open('told.json', 'w'))\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explore", str(run.path), "--port", "5099"]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    wanted = ["--vector", "embedding", "--image", "image", "--host", "localhost", "--port", "5099"]
    assert told == [str(run.path / "explore.parquet"), *wanted]
    (package / "cli.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(crlf.InputError, match="embedding-atlas ended with exit code 3; the table is"):
        crlf.explore(run)


def test_what_cannot_be_explored(make, monkeypatch: pytest.MonkeyPatch):
    run, _ = make()
    run.release()
    where = str(run.path)
    assert "split must be train or test, not 'val'" in refused("explore", where, "--table-only", "--split", "val")
    save_array(run.file("test_emb.npy"), np.zeros((2, 5), np.float32))
    assert "has 2 rows, but 'drawn' has 3 test images: `crlf embed" in refused("explore", where, "--table-only")
    os.unlink(run.file("test_emb.npy"))
    assert f"`crlf embed {where}` makes it" in refused("explore", where, "--table-only")
    for module in ("embedding_atlas", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
        assert f"{module}" in (line := refused("explore", where)) and line.endswith(": pip install 'crlf[explore]'")
    assert sorted(os.listdir(where)) == ["recipe.json", "train_emb.npy"]


def test_a_subset_is_the_one_that_was_embedded(make):
    run, sets = make(subset=2)
    assert pq.read_table(crlf.explore(run, table_only=True))["id"].to_pylist() == sets[0].ids[:2] + sets[1].ids[:2]
