"""Your own images: every kind of file becomes the right pixels, in the right row, and only once."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import refused
from tiny_images import encoded, pixels

from crlf import cli, data
from crlf.data import ImageSettings
from crlf.data.files import arrays, decode_cache, listing
from crlf.data.files.class_folders import arrange
from crlf.data.files.decode import decode
from crlf.data.files.layout import layout
from crlf.errors import InputError

RANDOM = np.random.default_rng(2)

pytestmark = pytest.mark.usefixtures("cache")


def put(folder: Path, names: list[str]) -> list[bytes]:
    """Different PNG files of these names."""
    files = []
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.append(encoded(pixels(seed), "PNG"))
        (folder / name).write_bytes(files[-1])
    return files


def load(path: Path, **settings: object) -> tuple[data.ImageSet, data.ImageSet]:
    return data.load(str(path), None, ImageSettings(**settings))  # type: ignore[arg-type]


def table(cache: Path, name: str) -> list[list[str]]:
    [path] = cache.rglob(name)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


# Rows


def test_rows_are_in_the_order_of_the_relative_paths(tmp_path: Path):
    names = ["10.png", "9.png", "a/x.png", "b.png", "sub/deep/er/z.PNG"]
    files = put(tmp_path, names)
    train, test = load(tmp_path, image_size=32)
    assert list(train.ids) == names and len(test) == 0 and train.labels is None
    assert test.images.shape == (0, 3, 32, 32)
    for row, content in zip(train.images, files, strict=True):
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(row.permute(1, 2, 0).numpy(), np.asarray(image))


def test_names_of_any_kind(tmp_path: Path):
    names = [f"{'n' * 240}.png", "Grüße 🐈.png", "a b  c.png", "new\nline.png", "no suffix", "wrong.jpg", "日本/語.png"]
    put(tmp_path, sorted(names))
    assert sorted(load(tmp_path)[0].ids) == sorted(names)


def test_hidden_files_are_not_there(tmp_path: Path):
    put(tmp_path, ["a.png", ".hidden.png", ".thumbnails/a.png"])
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert load(tmp_path, max_skipped=0)[0].ids == ["a.png"]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((20, 900, 30), 32),
        ((63, 63), 32),
        ((64, 65, 10), 64),
        ((100,), 96),
        ((128, 500, 200), 128),
        ((4000, 3000), 224),
    ],
)
def test_the_size_suits_the_images(tmp_path: Path, sides: tuple[int, ...], expected: int):
    for i, side in enumerate(sides):
        Image.new("L", (side, side + 40 * i)).save(tmp_path / f"{i}.png")
    assert load(tmp_path, image_size=0)[0].images.shape == (len(sides), 3, expected, expected)


# The cache


def counted(monkeypatch: pytest.MonkeyPatch, until: int = 10**9) -> list[int]:
    """The sizes of the files that are decoded from now on; the one after the `until`th is a Ctrl-C."""
    calls: list[int] = []

    def counting(content: bytes, *settings: int) -> np.ndarray:
        if len(calls) == until:
            raise KeyboardInterrupt
        calls.append(len(content))
        return decode(content, *settings)

    monkeypatch.setattr(decode_cache, "decode", counting)
    return calls


def test_a_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, [f"{i}.png" for i in range(9)])
    (tmp_path / "note.txt").write_text("x")
    calls = counted(monkeypatch)
    first = load(tmp_path, max_skipped=0.2)[0]
    assert len(calls) == 10
    again = load(tmp_path, max_skipped=0.2)[0]
    assert len(calls) == 10 and torch.equal(first.images, again.images) and first.ids == again.ids
    load(tmp_path, max_skipped=0.2, image_size=16)
    assert len(calls) == 20  # another size is another place in the cache


@pytest.mark.parametrize("classes", [("cat", "dog", "eel"), ("",)])
def test_a_subset_decodes_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple):
    put(tmp_path, [f"{name}/{i:03}.png".lstrip("/") for name in classes for i in range(300 // len(classes))])
    whole = load(tmp_path)[0]
    calls = counted(monkeypatch)
    train, test = data.load(str(tmp_path), None, ImageSettings(), subset=30)
    assert len(train) == 30 and 30 <= len(calls) <= 36
    if classes == ("",):
        assert train.ids == whole.ids[:30] and torch.equal(train.images, whole.images[:30]) and train.labels is None
    else:
        assert train.labels.tolist() == 10 * [0, 1, 2] and set(test.labels.tolist()) == {0, 1, 2}
        assert all(int(name[-7:-4]) < 13 for name in train.ids)  # the first of each
    data.load(str(tmp_path), None, ImageSettings(), subset=30)
    assert len(calls) <= 36, "the second time nothing"


def test_a_subset_takes_folders_for_classes_only_if_the_whole_set_would(tmp_path: Path):
    put(tmp_path, [f"{name}/{i}.png" for name in "ab" for i in range(20)] + [f"zz{i}.png" for i in range(9)])
    train, test = data.load(str(tmp_path), None, ImageSettings(), subset=8)
    assert train.labels is None and len(train) == 8 and len(test) == 0


def test_a_changed_file_is_decoded_again(tmp_path: Path):
    put(tmp_path, ["a.png", "b.png"])
    before = load(tmp_path)[0].images.clone()
    pixels(7).save(tmp_path / "b.png")
    after = load(tmp_path)[0].images
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_writing_to_the_images_changes_no_cache(tmp_path: Path):
    put(tmp_path, ["a.png", "b.png"])
    images = load(tmp_path)[0].images
    before = images.clone()
    images.zero_()
    assert torch.equal(load(tmp_path)[0].images, before)


@pytest.mark.parametrize("spoil", ["nothing", "a cut line", "more rows than told", "fewer rows than told"])
def test_a_killed_run_goes_on(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: str):
    put(tmp_path, [f"{i:02}.png" for i in range(20)])
    monkeypatch.setattr(decode_cache, "BATCH", 4)
    with monkeypatch.context() as killing:
        counted(killing, until=10)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    [rows], [told] = cache.rglob(decode_cache.ROWS), cache.rglob(decode_cache.TOLD)
    assert len(told.read_text().splitlines()) == 8 and not list(cache.rglob(decode_cache.INDEX))
    if spoil == "a cut line":
        told.write_bytes(told.read_bytes()[:-9])
    if spoil == "more rows than told":
        rows.write_bytes(rows.read_bytes() + b"x" * 5000)
    if spoil == "fewer rows than told":
        rows.write_bytes(rows.read_bytes()[:-1])
    calls = counted(monkeypatch)
    resumed = load(tmp_path)[0]
    assert len(calls) == {"nothing": 12, "a cut line": 13, "more rows than told": 12, "fewer rows than told": 20}[spoil]
    for name, row in zip(resumed.ids, resumed.images, strict=True):
        assert np.array_equal(row.numpy(), decode((tmp_path / name).read_bytes(), 32)), name


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path):
    put(tmp_path, ["a.png", "b.png"])
    before = load(tmp_path)[0].images.clone()
    [images] = cache.rglob(decode_cache.IMAGES)
    images.write_bytes(b"short")
    assert torch.equal(load(tmp_path)[0].images, before)
    [index] = cache.rglob(decode_cache.INDEX)
    index.write_text('{"ids": 3')
    assert torch.equal(load(tmp_path)[0].images, before)


# What is skipped, and what is there twice


def test_skipped_files_are_listed_with_their_reason(tmp_path: Path, cache: Path, capsys):
    put(tmp_path, [f"{i}.png" for i in range(5)])
    (tmp_path / "=1+1.png").write_bytes(b"")
    (tmp_path / '@x, "y".jpg').write_bytes(b"text")
    os.mkfifo(tmp_path / "pipe")
    train, _ = load(tmp_path, max_skipped=0.5)
    assert list(train.ids) == [f"{i}.png" for i in range(5)]
    assert "files skipped: 3" in capsys.readouterr().err
    rows = dict(table(cache, "skipped.csv"))
    assert set(rows) == {"'=1+1.png", '\'@x, "y".jpg', "pipe"}
    assert rows["'=1+1.png"] == "it is empty" and rows["pipe"] == "it is not a regular file"


def test_too_many_skipped_files_stop_the_run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, [f"{i}.png" for i in range(9)])
    (tmp_path / "bad.png").write_bytes(b"bad")
    assert len(load(tmp_path)[0]) == 9  # a tenth is allowed
    (tmp_path / "worse.png").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"2 of 11 files were skipped, more than max_skipped 0\.1: .*skipped\.csv'"):
        load(tmp_path)
    calls = counted(monkeypatch)
    assert len(load(tmp_path, max_skipped=0.2)[0]) == 9 and not calls


def test_copies_are_listed_and_kept(tmp_path: Path, cache: Path, capsys):
    put(tmp_path, ["a.png", "b.png", "c.png"])
    for name in ("d.png", "e.png"):
        (tmp_path / name).write_bytes((tmp_path / "b.png").read_bytes())
    assert len(load(tmp_path)[0]) == 5
    assert table(cache, "duplicates.csv") == [["d.png", "b.png"], ["e.png", "b.png"]]
    assert "copies of other images: 2" in capsys.readouterr().err


# Links


def test_links_out_of_the_folder_are_followed_only_if_asked(tmp_path: Path, cache: Path):
    put(tmp_path / "out", ["far.png", "more/deep.png"])
    put(tmp_path / "in", ["a.png", "sub/b.png"])
    own = tmp_path / "in"
    (own / "link.png").symlink_to(tmp_path / "out" / "far.png")
    (own / "more").symlink_to(tmp_path / "out" / "more")
    (own / "inside.png").symlink_to("a.png")
    (own / "again").symlink_to("sub")
    (own / "loop").symlink_to(".")
    (tmp_path / "out" / "more" / "up").symlink_to("..")
    (own / "self").symlink_to("self")
    with pytest.raises(InputError, match="3 of 6 files were skipped"):
        load(own)
    rows = dict(table(cache, "skipped.csv"))
    assert set(rows) == {"link.png", "more", "self"} and "--follow-links" in rows["more"]
    followed = load(own, follow_links=True, max_skipped=0.2)[0]
    expected = {"a.png", "inside.png", "link.png", "sub/b.png", "more/deep.png", "more/up/far.png"}
    assert set(followed.ids) == expected


# Classes


def test_class_folders_are_labels_and_a_tenth_is_held_out(tmp_path: Path, capsys):
    put(tmp_path, [f"{k}/{i}.png" for k in ("cat", "dog", "eel") for i in range(20 if k == "cat" else 5)])
    train, test = load(tmp_path, hold_out=0.1)
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert len(train) == 26 and sorted(test.labels.tolist()) == [0, 0, 1, 2]
    for part in (train, test):
        for name, label, image in zip(part.ids, part.labels, part.images, strict=True):
            assert part.classes[label] == name.split("/")[0]
            assert np.array_equal(image.numpy(), decode((tmp_path / name).read_bytes(), 32))
    assert train.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert not set(train.ids) & set(test.ids)
    assert load(tmp_path, hold_out=0.1)[1].ids == test.ids
    assert "which pretraining never sees; 4 images" in capsys.readouterr().err


def test_no_image_with_a_copy_is_held_out():
    names = [f"{k}/{i}" for k in "ab" for i in range(20)]
    digests = [f"{i % 15:02}{k}" for k in "ab" for i in range(20)]  # the first five of each are there twice
    train, test, labels, classes, *_ = arrange(layout(names), digests)
    assert classes == ["a", "b"] and labels == [0] * 20 + [1] * 20
    assert sorted(train + test) == list(range(40))
    assert {digests[row] for row in test} == {"05a", "06a", "05b", "06b"}


@pytest.mark.parametrize(
    "names",
    [
        ["a/1", "a/2", "b/1", "b/2", "loose"],
        ["a/1", "a/2", "a/3"],
        ["a/1", "a/2", "b/1"],
        ["1", "2", "3"],
    ],
)
def test_folders_that_are_not_obviously_classes(names: list[str]):
    assert arrange(layout(names), names).labels is None


def test_classes_of_nothing_but_copies_are_none():
    found = arrange(layout(["a/1", "a/2", "b/1", "b/2"]), ["x", "y", "z", "z"])
    assert found.labels is None
    assert found.notes == ("the folders are not used as classes: 'b' has only copies of one image",)


# Lists and arrays


def test_a_list_names_files_in_its_own_order(tmp_path: Path):
    put(tmp_path, ["x/b.png", "x/a b.png", "ü.png"])
    (tmp_path / "list.txt").write_text(f"\ufeffü.png\n\nx/a b.png\r\n{tmp_path / 'x' / 'b.png'}\n", encoding="utf-8")
    train, test = load(tmp_path / "list.txt")
    assert list(train.ids) == ["ü.png", "x/a b.png", str(tmp_path / "x" / "b.png")] and not len(test)
    assert np.array_equal(train.images[1].numpy(), decode((tmp_path / "x/a b.png").read_bytes(), 32))


COLOURS = RANDOM.integers(0, 256, (5, 12, 14, 3), dtype=np.uint8)
CLEAR = np.concatenate([COLOURS, np.zeros((5, 12, 14, 1), dtype=np.uint8)], axis=3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLOURS, COLOURS),
        (COLOURS.transpose(0, 3, 1, 2), COLOURS),
        (np.asfortranarray(COLOURS), COLOURS),
        (COLOURS[..., 0], COLOURS[..., :1].repeat(3, 3)),
        (COLOURS[..., :1], COLOURS[..., :1].repeat(3, 3)),
        (CLEAR, np.full_like(COLOURS, 255)),
        (np.dstack([COLOURS[0], np.full((12, 14), 255, np.uint8)])[None], COLOURS[:1]),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_any_layout(tmp_path: Path, array: np.ndarray, expected: np.ndarray, suffix: str):
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array, labels=np.zeros(3))
    train, test = load(path)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), expected)
    assert train.ids[0] == f"{path.name}/00000" and len(test) == 0
    assert load(path, image_size=8)[0].images.shape == (len(expected), 3, 8, 8)


def test_an_array_is_mapped_and_its_file_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, np.ascontiguousarray(COLOURS.transpose(0, 3, 1, 2)))
    before = path.read_bytes()
    images = load(path)[0].images
    mapped = arrays.read(path)
    assert isinstance(mapped, np.memmap) and np.shares_memory(arrays.three_channels(mapped, path), mapped)
    images.zero_()
    assert path.read_bytes() == before


# Bad input


def save(folder: Path, array: np.ndarray, **options: object) -> None:
    np.save(folder / "a.npy", array, **options)


def bad(make: Callable[[Path], object], reason: str, name: str = "a.npy") -> tuple[object, str, str]:
    return make, name, reason


BAD = {
    "missing": bad(lambda folder: None, "does not exist", "nowhere/at all"),
    "missing list": bad(lambda folder: None, "does not exist", "a.txt"),
    "a name that is too long": bad(lambda folder: None, "does not exist", "x/" + "n" * 5000),
    "empty folder": bad(lambda folder: (folder / "f").mkdir(), "is empty", "f"),
    "no image": bad(lambda folder: (folder / "f.d").mkdir() or (folder / "f.d/x").write_text("hi"),
                    "none of 1 files is an image; the first is 'x': it is no JPEG", "f.d"),
    "a file of another kind": bad(lambda folder: (folder / "a.zip").write_bytes(b"PK"), "must be a folder", "a.zip"),
    "empty list": bad(lambda folder: (folder / "a.txt").write_text("\n \n"), "is empty", "a.txt"),
    "binary list": bad(lambda folder: (folder / "a.txt").write_bytes(b"\xff\xfe\xfa"), "not UTF-8", "a.txt"),
    "list of missing files": bad(
        lambda folder: (folder / "a.txt").write_text("no.png\nneither.png\n"),
        "names 2 of 2 files that do not exist, the first 'no.png'", "a.txt"),
    "float array": bad(lambda folder: save(folder, np.zeros((4, 8, 8))), "must be uint8 (N, H, W)"),
    "flat array": bad(lambda folder: save(folder, np.zeros((4, 8), np.uint8)), "not uint8 (4, 8)"),
    "two channels": bad(lambda folder: save(folder, np.zeros((4, 8, 8, 2), np.uint8)), "not uint8 (4, 8, 8, 2)"),
    "either layout": bad(lambda folder: save(folder, np.zeros((4, 3, 8, 3), np.uint8)), "not uint8 (4, 3, 8, 3)"),
    "no images": bad(lambda folder: save(folder, np.zeros((0, 8, 8), np.uint8)), "not uint8 (0, 8, 8)"),
    "pickled": bad(lambda folder: save(folder, np.array([{}], object), allow_pickle=True), "Python objects"),
    "damaged array": bad(lambda folder: (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v"), "cannot be read"),
    "several arrays": bad(
        lambda folder: np.savez(folder / "a.npz", x=np.zeros(1), y=np.zeros(1)), "not 2 (x, y)", "a.npz"),
    "damaged npz": bad(lambda folder: (folder / "a.npz").write_bytes(b"PK\x05\x06"), "cannot be read", "a.npz"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path):
    make, name, reason = BAD[case]
    make(tmp_path)  # type: ignore[operator]
    line = refused("pretrain", str(tmp_path / name), "--out", str(tmp_path / "run"))
    assert reason in line and (name in line or len(name) > 1000)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["photos", "--image-size", "7"], "image_size must be 0 or in 8..1024, not 7"),
        (["photos", "--max-skipped", "1.5"], "max_skipped must be in 0..1, not 1.5"),
        (["photos", "--max-pixels", "0"], "max_pixels must be in 1..178956970, not 0"),
        (["photos", "--data", "cifar10"], "data is given twice"),
        (["photos", "--data-dir", "photos"], "data_dir is for named data sets"),
        (["cifar10", "--image-size", "64"], "image_size is for your own images, not for the data set 'cifar10'"),
        (["stl10", "--follow-links"], "follow_links is for your own images"),
        (["cifar1"], "Did you mean 'cifar10'?"),
        (["photos", "--batch-size", "9"], "batch_size must be at most the 8 training images, not 9"),
    ],
)
def test_settings_that_do_not_fit(arguments: list[str], reason: str, tmp_path: Path, monkeypatch):
    put(tmp_path / "photos", [f"{i}.png" for i in range(8)])
    monkeypatch.chdir(tmp_path)
    assert reason in refused("pretrain", *arguments, "--out", "run", alone=False)
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, ["a.png", "shut/b.png"])
    scandir, shut = os.scandir, str(tmp_path / "shut")

    def refusing(folder: str) -> object:
        if str(folder) == shut:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(listing.os, "scandir", refusing)
    for folder in (tmp_path, tmp_path / "shut"):  # half of the data may be in there
        with pytest.raises(InputError, match=r"data folder '.*shut' cannot be read: Permission denied"):
            load(folder, max_skipped=1)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, ["a.png"])
    monkeypatch.setenv("CRLF_CACHE", "/dev/null/cache")
    with pytest.raises(InputError, match=r"cannot be written: .*set CRLF_CACHE to another"):
        load(tmp_path)


# From the folder to the report


STAGES = ("embed", "probe", "draw", "report", "summary")


def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *more: str, after: Sequence[str] = STAGES) -> Path:
    """A run after pretraining and other stages, each from another folder than the one in which it was started."""
    run = tmp_path / "run"
    tiny = ["--epochs", "1", "--batch-size", "16", "--views", "2", "--device", "cpu", *more]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", "my photos", "--out", str(run), *tiny]) == 0
    monkeypatch.chdir("/")
    for stage in after:
        assert cli.main([stage, str(run)]) == 0, stage
    return run


@pytest.mark.long
def test_unlabelled_images_end_in_embeddings_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    names = [f"album {i % 3}/{i:02}.png" if i % 5 else f"{i}.png" for i in range(40)]
    put(tmp_path / "my photos", names)
    run = stages(monkeypatch, tmp_path, "--subset", "32")
    said = capsys.readouterr()
    assert "finding an image by a crop of it" in said.err and "image by crop" in said.out
    ids = json.loads((run / "train_ids.json").read_text())
    assert ids == sorted(names)[:32] and json.loads((run / "test_ids.json").read_text()) == []
    assert np.load(run / "train_emb.npy").shape[0] == 32 and np.load(run / "test_emb.npy").shape[0] == 0
    for figure in ("loss_curve", "pca_embedding", "tsne_embedding", "views"):
        assert (run / f"{figure}.png").is_file()
    page = (run / "report.html").read_text()
    assert "the encoder finds that image among" in page and "Not there yet" not in page
    assert "PCA of 32 training embeddings" in page and f'"{ids[0]}"' in page


def test_class_folders_end_in_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "my photos", [f"{k}/{i:02}.png" for k in "ab" for i in range(20)])
    run = stages(monkeypatch, tmp_path, "--subset", "20", "--image-size", "16", "--hold-out", "0.1")
    assert {"linear_accuracy", "knn_accuracy", "chance"} <= set(json.loads((run / "scores.json").read_text()))
    assert sorted(set(np.load(run / "train_lbl.npy"))) == [0, 1] and len(np.load(run / "test_lbl.npy")) == 2
    names = json.loads((run / "train_ids.json").read_text())
    assert [name[0] for name in names] == ["ab"[label] for label in np.load(run / "train_lbl.npy")]


def test_a_row_is_the_embedding_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "my photos", [f"{i:02}.png" for i in range(16)])
    run = stages(monkeypatch, tmp_path, after=["embed"])
    rows = dict(zip(json.loads((run / "train_ids.json").read_text()), np.load(run / "train_emb.npy"), strict=True))
    from crlf.embedding.embed import embed_images, load_encoder
    from crlf.runs.run import Run

    recipe = Run.open(run).recipe
    encoder = load_encoder(Run.open(run), recipe, torch.Size((3, 32, 32)))
    for name in ("03.png", "15.png"):
        image = torch.from_numpy(decode((tmp_path / "my photos" / name).read_bytes(), 32))[None]
        assert np.allclose(embed_images(encoder, image, recipe.normalisation)[0], rows[name], atol=1e-5)
