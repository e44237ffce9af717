"""Bits that the numbers do not fill, names that are no UTF-8, one image in an array: through the commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from terminal import PIPES, here
from tiny_images import encoded, pixels

from crlf import data
from crlf.data import ImageSettings

pytestmark = pytest.mark.usefixtures("cache", "narrow")
TINY = ("--epochs", "1", "--views", "2", "--image-size", "16", "--device", "cpu")


def deep(folder: Path, bits: int, count: int = 4) -> np.ndarray:
    """16-bit files whose numbers need so many bits, and what 8 bits they are."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(bits).integers(0, 2**bits, (count, 16, 16), dtype=np.uint16)
    values[0, 0, 0] = 2**bits - 1
    for i, image in enumerate(values):
        tifffile.imwrite(folder / f"{i}.tif", image)
    return np.rint(values * (255 / (2**bits - 1)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_white_is_where_the_numbers_end(bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    expected = deep(tmp_path, bits)
    for _ in range(2):  # the second time from the cache
        train, _ = data.load(str(tmp_path), None, ImageSettings(image_size=16))
        assert train.white == 2**bits - 1 and np.array_equal(train.images[:, 0].numpy(), expected)
        said = capsys.readouterr().err
        assert (f"needs {bits} of 16 bits, so white is {2**bits - 1} (--white sets another value)" in said) is (
            bits < 16
        )


def test_a_white_that_is_given(tmp_path: Path):
    deep(tmp_path, 10)
    full = data.load(str(tmp_path), None, ImageSettings(image_size=16, white=65535))[0]
    low = data.load(str(tmp_path), None, ImageSettings(image_size=16, white=511))[0]
    assert full.images.max() == 4 and (low.images == 255).float().mean() > 0.4


def test_each_depth_of_a_folder_has_its_own_white(tmp_path: Path):
    """8 bits are white at 255 and 12 at 4095, whatever the 16 bits beside them need."""
    for bits in (10, 14):
        folder = tmp_path / str(bits)
        expected = deep(folder, bits, count=2)
        shallow, twelve = np.arange(256, dtype=np.uint8).reshape(16, 16), np.arange(0, 4096, 16, dtype=np.uint16)
        (folder / "8.png").write_bytes(encoded(Image.fromarray(shallow), "PNG"))
        try:
            tifffile.imwrite(folder / "9.tif", twelve.reshape(16, 16) + 15, bitspersample=12, photometric="minisblack")
        except NotImplementedError:
            pytest.skip("imagecodecs packs 12 bits since 2026.3.6, which needs Python 3.11")
        train, _ = data.load(str(folder), None, ImageSettings(image_size=16))
        assert train.white == 2**bits - 1 and list(train.ids) == ["0.tif", "1.tif", "8.png", "9.tif"]
        found = train.images[:, 0].numpy()
        assert np.array_equal(found[:2], expected) and np.array_equal(found[2], shallow)
        assert np.array_equal(found[3], np.rint((twelve.reshape(16, 16) + 15) * (255 / 4095)))


def test_a_run_keeps_its_white_for_new_images(tmp_path: Path):
    deep(tmp_path / "in", 12)
    run = str(tmp_path / "run")
    assert here(PIPES, "pretrain", str(tmp_path / "in"), "--out", run, *TINY).code == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["images"]["white"] == 4095
    assert here(PIPES, "embed", run).code == 0
    out = tmp_path / "new.parquet"
    assert here(PIPES, "embed", run, str(tmp_path / "in" / "3.tif"), "--out", str(out)).code == 0
    np.testing.assert_allclose(np.load(out.with_suffix(".npy"))[0], np.load(f"{run}/train_emb.npy")[3], atol=1e-5)


def test_a_name_that_is_no_utf_8(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i, 16, 16), "PNG"))
    os.rename(folder / "3.png", os.fsencode(folder) + b"/caf\xe9.png")
    run = str(tmp_path / "run")
    assert here(PIPES, "pretrain", str(folder), "--out", run, *TINY).code == 0
    for stage in ("embed", "draw", "report"):
        code, said = here(PIPES, stage, run)
        assert code == 0, said
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"in/0.png\nin/caf\xe9.png\n")
    assert len(data.load(str(listed), None, ImageSettings(image_size=16))[0]) == 2


@pytest.mark.parametrize("channels_first", [False, True])
def test_one_colour_image_in_an_array_is_one(channels_first: bool, tmp_path: Path):
    image = np.asarray(pixels(0, 24, 20))
    np.save(tmp_path / "a.npy", image.transpose(2, 0, 1) if channels_first else image)
    train, _ = data.load(str(tmp_path / "a.npy"), None, ImageSettings())
    assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), image) and len(train) == 1
