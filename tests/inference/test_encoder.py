"""A loaded encoder gives what `crlf embed` gave, whatever its images come as."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crlf
from crlf import data
from crlf.data.in_memory import with_count
from crlf.errors import InputError
from crlf.recipe import Recipe

TINY = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1, normalisation=data.PUBLISHED["shapes"])
IMAGES = data.load("shapes")[0].images[:64]  # uint8 (64, 3, 32, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    made = crlf.pretrain(TINY, out=tmp_path_factory.mktemp("made") / "run ü", device="cpu")
    return crlf.embed(made, device="cpu")


@pytest.fixture(scope="module")
def encoder(run: crlf.Run) -> crlf.Encoder:
    return crlf.load(run, device="cpu")


@pytest.fixture(scope="module")
def rows(run: crlf.Run) -> np.ndarray:
    return run.array("train_emb.npy")


def pil(i: int) -> Image.Image:
    return Image.fromarray(IMAGES[i].permute(1, 2, 0).numpy())


# The same numbers


def test_the_runs_own_images_give_its_own_bits(encoder: crlf.Encoder, rows: np.ndarray):
    found = encoder.encode(IMAGES.numpy())
    assert found.dtype == np.float32 and np.array_equal(found, rows)


WAYS = {
    "tensor": lambda folder: IMAGES,
    "channels last": lambda folder: IMAGES.permute(0, 2, 3, 1).numpy(),
    "read only": lambda folder: np.frombuffer(IMAGES.numpy().tobytes(), np.uint8).reshape(IMAGES.shape),
    "list of arrays": lambda folder: list(IMAGES.numpy()),
    "tuple of tensors": lambda folder: tuple(IMAGES),
    "generator of PIL": lambda folder: (pil(i) for i in range(64)),
    "paths": lambda folder: put(folder),
    "words": lambda folder: np.array([str(path) for path in put(folder)]),
    "a mixture": lambda folder: [*put(folder)[:20], *map(pil, range(20, 40)), *IMAGES[40:].permute(0, 2, 3, 1).numpy()],
}


def put(folder: Path) -> list[Path]:
    paths = [folder / f"bild {i:02} ä.png" for i in range(64)]
    for i, path in enumerate(paths):
        pil(i).save(path)
    return paths


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [500, 7])
def test_any_way_to_hold_images_gives_the_same_rows(
    encoder: crlf.Encoder, rows: np.ndarray, tmp_path: Path, way: str, batch_size: int
):
    np.testing.assert_allclose(encoder.encode(WAYS[way](tmp_path), batch_size=batch_size), rows, atol=1e-6)


ONE = {
    "path": lambda folder: put(folder)[5],
    "word": lambda folder: str(put(folder)[5]),
    "PIL": lambda folder: pil(5),
    "PIL of another mode": lambda folder: pil(5).convert("RGBA"),
    "CHW": lambda folder: IMAGES[5].numpy(),
    "HWC": lambda folder: IMAGES[5].permute(1, 2, 0).numpy(),
    "array of one": lambda folder: IMAGES[5:6].numpy(),
}


@pytest.mark.parametrize("way", ONE)
def test_one_image_is_one_row(encoder: crlf.Encoder, rows: np.ndarray, tmp_path: Path, way: str):
    found = encoder.encode(ONE[way](tmp_path))
    assert found.shape == (1, 1792)
    np.testing.assert_allclose(found, rows[5:6], atol=1e-6)


def test_gray_is_three_equal_channels(encoder: crlf.Encoder):
    gray = IMAGES[:5, 0].numpy()
    expected = encoder.encode(np.repeat(gray[:, None], 3, axis=1))
    for images in (gray, gray[..., None], gray[:, None], [*gray], [Image.fromarray(one) for one in gray]):
        np.testing.assert_allclose(encoder.encode(images), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(gray[2]), expected[2:3], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((32, 32), 1), ((3, 32, 32), 1), ((32, 32, 3), 1), ((32, 32, 4), 1), ((32, 32, 1), 1), ((1, 32, 32), 1),
     ((2, 32, 32), 2), ((4, 32, 32), 4), ((7, 3, 32, 32), 7)],
)  # fmt: skip
def test_how_an_array_of_three_dimensions_is_read(shape: tuple[int, ...], count: int):
    assert len(with_count(np.zeros(shape, np.uint8))) == count


def test_a_file_is_scaled_and_turned_as_for_training(encoder: crlf.Encoder, tmp_path: Path):
    from crlf.data.files.decode import decode

    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(tmp_path / "turned.png", exif=exif)
    pixels = decode((tmp_path / "turned.png").read_bytes(), 32)
    expected = encoder.encode(pixels)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_allclose(encoder.encode(image), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(tmp_path / "turned.png"), expected, atol=1e-6)


def test_nothing_in_nothing_out(encoder: crlf.Encoder):
    assert encoder.encode([]).shape == encoder.encode(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 1792)


def test_what_others_build_on(encoder: crlf.Encoder, rows: np.ndarray):
    assert encoder.shape == (3, 32, 32) and encoder.dim == 1792 and encoder.recipe == TINY
    assert encoder.classes == data.load("shapes")[0].classes and encoder.device.type == "cpu"
    assert not encoder.module.training and not any(p.requires_grad for p in encoder.module.parameters())
    with torch.no_grad():
        np.testing.assert_allclose(encoder.module(encoder.normalise(IMAGES)).numpy(), rows, atol=1e-6)
    assert "3 × 32 × 32 pixels to 1792 numbers" in repr(encoder)


def test_a_pickled_encoder_gives_the_same_bits(encoder: crlf.Encoder, rows: np.ndarray):
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).encode(IMAGES), rows)


def test_it_loads_from_any_folder_and_before_embed(run: crlf.Run, rows: np.ndarray, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("recipe.json", "scores.json", "encoder_simclr.pth"):
        (bare / name).write_bytes(run.file(name).read_bytes())
    loaded = crlf.load("bare", device="cpu")
    assert loaded.classes == () and np.array_equal(loaded.encode(IMAGES), rows)


# Bad input

BAD = {
    "another size": (IMAGES[:, :, :28, :28], r"must have 32 × 32 pixels with 3 channels, as in training, not 28 × 28"),
    "another size in a list": ([IMAGES[0, :, :20]], "must have 32 × 32 pixels"),
    "float": (IMAGES.float(), r"must be uint8 .* not float32 \(64, 3, 32, 32\)"),
    "float in a list": ([IMAGES[0].double()], "must be uint8"),
    "channels": (np.zeros((2, 32, 32, 2), np.uint8), "with C of 1, 3 or 4"),
    "five dimensions": (np.zeros((2, 2, 32, 32, 3), np.uint8), "must be uint8"),
    "a batch in a list": ([IMAGES[:2]], r"image 0 must be an array \(H, W\).* not \(2, 3, 32, 32\)"),
    "a missing file": (["no where.png"], "image 'no where.png' cannot be used: .*No such file"),
    "a folder": ("/", "image '/' cannot be used: it is not a regular file"),
    "a number": (5, "image 0 must be a path, an array or a PIL image, not a int"),
    "bytes": (b"abc", "image 0 must be a path, an array or a PIL image, not a bytes"),
    "the second of a list": ([IMAGES[0], None], "image 1 must be a path, an array or a PIL image, not a NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(encoder: crlf.Encoder, case: str):
    images, reason = BAD[case]
    with pytest.raises(InputError, match=reason):
        encoder.encode(images)  # type: ignore[arg-type]


def test_damaged_files_and_images(encoder: crlf.Encoder, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"a.png' cannot be used: it is no JPEG"):
        encoder.encode(tmp_path / "a.png")
    pil(0).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:500])
    with (
        Image.open(tmp_path / "b.png") as image,
        pytest.raises(InputError, match=r"image 0 cannot be used: .*truncated"),
    ):
        encoder.encode(image)
    with pytest.raises(InputError, match="batch_size must be 1 or more, not 0"):
        encoder.encode(IMAGES, batch_size=0)


def test_runs_that_cannot_be_loaded(run: crlf.Run, tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        crlf.load(tmp_path / "no")
    for name in ("recipe.json", "scores.json"):
        (tmp_path / name).write_bytes(run.file(name).read_bytes())
    with pytest.raises(InputError, match=r"encoder_simclr.pth' is missing: `crlf pretrain` makes it"):
        crlf.load(tmp_path)
    (tmp_path / "encoder_simclr.pth").write_bytes(run.file("encoder_simclr.pth").read_bytes())
    for text, reason in (("{}", "must hold a JSON list, not a dict"), ("[", "cannot be read as JSON")):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(InputError, match=reason):
            crlf.load(tmp_path)
    for shape in (None, [3, 32], [3, 32, "x"], [3, 0, 32]):
        (tmp_path / "scores.json").write_text(json.dumps({"image_shape": shape}))
        with pytest.raises(InputError, match="has no image_shape: `crlf embed"):
            crlf.load(tmp_path)
