"""Small sets, and images that moved: the batch follows the set, and a run knows its images wherever they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import PIPES, here, refused
from tiny_images import encoded, pixels

from crlf.data import ImageSet
from crlf.recipe import RECIPES, Recipe

pytestmark = pytest.mark.usefixtures("cache", "narrow")
TINY = ("--epochs", "1", "--views", "2", "--image-size", "16", "--device", "cpu")


def put(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i, 16, 16), "PNG"))
    return folder


@pytest.mark.parametrize("count", [2, 5, 63])
def test_the_batch_follows_a_small_set(count: int, tmp_path: Path):
    code, said = here(PIPES, "pretrain", str(put(tmp_path / "in", count)), "--out", str(tmp_path / "run"), *TINY)
    assert code == 0 and f"each batch holds all {count} images (--batch-size sets another size)" in said
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["batch_size"] == count


def test_a_batch_that_was_asked_for_does_not(tmp_path: Path):
    path = str(put(tmp_path / "in", 5))
    for size in ("6", "128"):
        line = refused("pretrain", path, "--out", str(tmp_path / "run"), *TINY, "--batch-size", size, alone=False)
        assert line.endswith(f"batch_size must be at most the 5 training images, not {size}")
    with pytest.raises(ValueError, match="at most the 80"):
        Recipe(batch_size=128).for_images(80).steps_per_epoch(80)


def test_one_image_is_too_few(tmp_path: Path):
    line = refused("pretrain", str(put(tmp_path / "in", 1)), "--out", str(tmp_path / "run"), *TINY, alone=False)
    assert line.endswith("must have 2 training images or more, not 1")


def test_copies_are_learned_from_once_where_that_is_asked_for(tmp_path: Path):
    """All are embedded: row i is file i. Where the images lie elsewhere later, they are the same all the same."""
    folder, run = put(tmp_path / "in", 6), tmp_path / "run"
    for i in (0, 0, 4):
        shutil.copy(folder / f"{i}.png", folder / f"copy {i} {len(list(folder.iterdir()))}.png")
    code, said = here(PIPES, "pretrain", str(folder), "--out", str(run), *TINY, "--drop-copies")
    assert code == 0 and "copies left out: 3 of 9 images\n" in said
    assert json.loads((run / "recipe.json").read_text())["batch_size"] == 6  # all that are left
    folder = folder.rename(tmp_path / "moved")
    assert here(PIPES, "embed", str(run), "--data", str(folder), "--device", "cpu").code == 0
    assert len(np.load(run / "train_emb.npy")) == 9
    again = ("--out", str(run), *TINY, "--drop-copies", "--resume")
    assert here(PIPES, "pretrain", str(folder), *again).code == 0
    code, said = here(PIPES, "pretrain", str(folder), "--out", str(tmp_path / "all"), *TINY)
    assert code == 0 and "left out" not in said and "each batch holds all 9 images" in said


def test_a_set_without_copies_keeps_its_order_labels_and_names():
    images = torch.arange(5, dtype=torch.uint8)[[3, 1, 3, 0, 1]].view(5, 1, 1, 1).expand(5, 3, 2, 2).contiguous()
    whole = ImageSet(images, torch.tensor([0, 1, 1, 0, 1]), ("a", "b"), tuple("vwxyz"))
    found = whole.without_copies()
    assert found.images[:, 0, 0, 0].tolist() == [3, 1, 0] and list(found.ids) == ["v", "w", "y"]
    assert found.labels is not None and found.labels.tolist() == [0, 1, 0]
    assert found.without_copies() is found


def test_named_recipes_follow_and_are_written_as_numbers():
    for recipe in (Recipe(), *RECIPES.values()):
        assert recipe.for_images(80).batch_size == 80 and recipe.for_images(10_000) is recipe
        again = Recipe.from_dict(recipe.to_dict())
        assert again == recipe and type(again.batch_size) is int


def trained(tmp_path: Path, data: Path) -> str:
    run = str(tmp_path / "run")
    assert here(PIPES, "pretrain", str(data), "--out", run, *TINY).code == 0
    return run


def moved_array(tmp_path: Path) -> tuple[Path, Path]:
    np.save(tmp_path / "a.npy", np.stack([np.asarray(pixels(i, 16, 16)) for i in range(6)]))
    return tmp_path / "a.npy", tmp_path / "elsewhere" / "b.npy"


@pytest.mark.parametrize("kind", ["folder", "array", "list"])
@pytest.mark.parametrize("command", ["pretrain", "embed"])
def test_images_that_moved_are_found_again(kind: str, command: str, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    if kind == "array":
        before, after = moved_array(tmp_path)
    else:
        before, after = put(tmp_path / "A", 6), tmp_path / "elsewhere" / "B"
        if kind == "list":
            before, after = before / "list.txt", after / "list.txt"
            before.write_text("\n".join(f"{i}.png" for i in range(6)))
    run = trained(tmp_path, before)
    shutil.move(before.parent if kind == "list" else before, after.parent if kind == "list" else after)
    rest = ("--out", run, "--resume") if command == "pretrain" else (run,)
    line = refused(command, *rest, alone=False)
    assert line.endswith(f"data {str(before)!r} does not exist: give the new path of the images with --data")
    code, said = here(PIPES, command, *rest, "--data", str(after))
    assert code == 0
    assert f"the images of {str(before)!r} are the same as in {str(after)!r}: the run uses the new path" in said
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"] == str(after)
    assert here(PIPES, "embed", run).code == 0
    assert here(PIPES, "pretrain", "--out", run, "--resume").code == 0


@pytest.mark.parametrize("command", ["pretrain", "embed"])
def test_other_images_are_refused(command: str, tmp_path: Path):
    run = trained(tmp_path, put(tmp_path / "A", 6))
    other = str(put(tmp_path / "B", 6, first=1))
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    rest = ("--out", run, "--resume") if command == "pretrain" else (run,)
    line = refused(command, *rest, "--data", other, alone=False)
    assert ("data is" if command == "pretrain" else "its checkpoint has others") in line
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_without_a_checkpoint_nothing_is_known(tmp_path: Path):
    run = trained(tmp_path, put(tmp_path / "A", 6))
    for path in (tmp_path / "run").glob("checkpoint*"):
        path.unlink()
    (tmp_path / "A").rename(tmp_path / "B")
    assert "no checkpoint to compare them with" in refused("embed", run, "--data", str(tmp_path / "B"), alone=False)


def test_data_is_not_for_new_images(tmp_path: Path):
    run = trained(tmp_path, put(tmp_path / "A", 6))
    line = refused("embed", run, str(tmp_path / "A"), "--data", str(tmp_path / "A"))
    assert "is for the run's own images" in line
