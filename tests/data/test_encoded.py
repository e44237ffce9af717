"""Images that stay encoded: the same rows, labels and bits as the decoded set, in any order, on any number of ranks."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import refused
from tiny_images import encoded, pixels
from tiny_shards import jpegs, loose, shard, shards

import crlf
from crlf import data
from crlf.data import ImageSettings, loader
from crlf.data import encoded as encoded_images
from crlf.data.encoded import GRAY, Encoded
from crlf.data.files import on_demand, stores
from crlf.data.files.listing import File
from crlf.data.loader import batch_rows, epoch_order, piece_order
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOSS, RECIPE
from crlf.runtime.interrupts import Interrupted
from crlf.training import loop

pytestmark = pytest.mark.usefixtures("cache")
CPU = torch.device("cpu")
FILES = jpegs(60)


def load(path: Path, decode: str, **settings: object) -> tuple[data.ImageSet, data.ImageSet]:
    return data.load(str(path), None, ImageSettings(image_size=8, decode=decode, **settings))  # type: ignore[arg-type]


def classes(folder: Path) -> Path:
    for row, content in enumerate(FILES):
        place = folder / f"class{row % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:05}.jpg").write_bytes(content)
    return folder


def alike(one: data.ImageSet, other: data.ImageSet) -> None:
    assert isinstance(one.images, torch.Tensor) and isinstance(other.images, Encoded)
    assert torch.equal(one.images, other.decoded) and one.images.shape == other.images.shape
    assert list(one.ids) == list(other.ids) and one.classes == other.classes
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None and other.labels is not None:
        assert torch.equal(one.labels, other.labels)
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("hold_out", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["folder", "classes", "shards", "labelled shards"])
def test_rows_are_those_of_the_decoded_set(tmp_path: Path, kind: str, hold_out: float):
    makers = {"folder": lambda p: loose(p, FILES), "classes": classes, "shards": lambda p: shards(p, FILES, 25)}
    path = makers.get(kind, lambda p: shards(p, FILES, 25, labels=3))(tmp_path / "data")
    for one, other in zip(load(path, "ahead", hold_out=hold_out), load(path, "stream", hold_out=hold_out), strict=True):
        alike(one, other)
    train = load(path, "stream", hold_out=hold_out)[0]
    assert (train.labels is not None) == (kind in ("classes", "labelled shards"))
    alike(load(path, "ahead", hold_out=hold_out)[0].first(7), train.first(7))


def test_the_second_time_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [shards(tmp_path / "shards", FILES, 25, labels=3), loose(tmp_path / "folder", FILES)]
    before = [load(path, "stream")[0] for path in paths]
    monkeypatch.setattr(on_demand, "look", lambda *arguments: pytest.fail("looked again"))
    monkeypatch.setattr("crlf.data.files.tars.looked_through", lambda shard: pytest.fail("gone through again"))
    for path, earlier in zip(paths, before, strict=True):
        assert list(load(path, "stream")[0].ids) == list(earlier.ids)


def test_rows_and_parts(tmp_path: Path):
    images = load(loose(tmp_path / "data", FILES), "stream")[0].images
    assert isinstance(images, Encoded)
    whole = images[:]
    assert torch.equal(images[3], whole[3]) and torch.equal(images[[5, 2]], whole[[5, 2]])
    assert torch.equal(images.part([9, 4])[:], whole[[9, 4]]) and torch.equal(
        images.part(slice(50, None))[:], whole[50:]
    )
    assert torch.equal(torch.cat(list(images.split(25))), whole) and torch.equal(torch.stack(list(images)), whole)
    assert images.nbytes == whole.nbytes and len(images) == 60


def test_without_copies(tmp_path: Path):
    path = loose(tmp_path / "data", [FILES[0], FILES[1], FILES[0], FILES[2]])
    found = load(path, "stream")[0].without_copies()
    assert list(found.ids) == ["00000.jpg", "00001.jpg", "00003.jpg"] and isinstance(found.images, Encoded)


# When


def test_files_are_decoded_ahead_where_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    path = loose(tmp_path / "data", FILES)
    room = namedtuple("room", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: room(2 * 60 * 3 * 8 * 8 - 1))
    assert isinstance(load(path, "auto")[0].images, Encoded)
    assert (
        "decoded while they are used, not ahead (--decode): decoded they would take 11.5 kB" in capsys.readouterr().err
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda place: room(2 * 60 * 3 * 8 * 8))
    assert isinstance(load(path, "auto")[0].images, torch.Tensor)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: room(0))
    assert isinstance(load(path, "auto")[0].images, torch.Tensor), "it is decoded already"


def test_tables_and_arrays_are_no_files(tmp_path: Path):
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"decode must be ahead or auto for tables and arrays, not 'stream': '.*a\.npy'"
    ):
        load(tmp_path / "a.npy", "stream")
    with pytest.raises(InputError, match=r"decode 'later' is not known: choose from ahead, auto, stream"):
        load(tmp_path / "a.npy", "later")


# Training


TINY = Recipe(batch_size=16, views=2, epochs=2, images=ImageSettings(image_size=8))


def recipe(path: Path, decode: str) -> Recipe:
    return dataclasses.replace(TINY, data=str(path), images=ImageSettings(image_size=8, decode=decode))


def same_run(one: crlf.Run, other: crlf.Run) -> None:
    assert one.file(LOSS).read_bytes() == other.file(LOSS).read_bytes()
    ours, theirs = one.tensors(ENCODER), other.tensors(ENCODER)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("all_narrow")
def test_training_has_the_same_bits_and_goes_on_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = shards(tmp_path / "data", FILES, 25)
    ahead = crlf.pretrain(recipe(path, "ahead"), out=tmp_path / "ahead", device="cpu")
    same_run(ahead, crlf.pretrain(recipe(path, "stream"), out=tmp_path / "stream", device="cpu"))
    before, steps = loop.Step.__call__, []

    def stopping(self, *arguments, **options):
        steps.append(0)
        if len(steps) == 5:  # of six, three an epoch
            signal.raise_signal(signal.SIGINT)
        return before(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Step, "__call__", stopping)
        with pytest.raises(Interrupted, match="after step 5 of 6"):
            crlf.pretrain(recipe(path, "stream"), out=tmp_path / "stopped", device="cpu")
    resumed = crlf.pretrain(recipe(path, "auto"), out=tmp_path / "stopped", device="cpu", resume=True)
    same_run(ahead, resumed)
    assert '"decode": "stream"' in resumed.file(RECIPE).read_text()
    crlf.embed(ahead)
    crlf.embed(resumed)
    for name in ("train_emb.npy", "thumbnails.npy"):
        assert ahead.file(name).read_bytes() == resumed.file(name).read_bytes()


@pytest.fixture
def images(tmp_path: Path) -> Encoded:
    found = load(loose(tmp_path / "data", FILES), "stream")[0].images
    assert isinstance(found, Encoded)
    return found


def rows_of(step: int) -> torch.Tensor:
    return batch_rows(step, 60, 8, seed=0)


def test_a_batch_is_its_rows_after_a_jump_too(images: Encoded):
    before, whole = threading.active_count(), images[:]
    with loader.batches(images, rows_of, CPU) as found:
        assert isinstance(found, loader.DecodeAhead)
        for step in (0, 1, 7, 2, 4, 3, 17, 7):
            assert torch.equal(found[step], whole[rows_of(step)]), step
    assert threading.active_count() == before


def test_steps_that_wait_say_so(images: Encoded, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(loader, "WATCHED", 3)
    decode = encoded_images.decode

    def slow(*arguments):
        time.sleep(0.002)
        return decode(*arguments)

    monkeypatch.setattr(encoded_images, "decode", slow)
    with loader.batches(images, rows_of, CPU) as found:
        for step in range(8):
            found[step]
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"decoding does not keep up: steps wait [\d.]+ % of their time, at [\d,]+ images a second of \d+ threads "
        r"\(--decode ahead decodes once; --image-size sets smaller images\)",
        line,
    )
    monkeypatch.setattr(encoded_images, "decode", decode)
    with loader.batches(images, rows_of, CPU) as found:
        for step in range(8):
            found[step]
            time.sleep(0.05)
    assert not capsys.readouterr().err, "where decoding keeps up, nothing is said"


# The order where a store is read piece by piece


def remote(sizes: list[int], each: int, monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """Shards in a store, of `sizes` images of so many bytes."""
    files = [
        File(f"{number}/{row}", f"s3://bucket/{number}.tar", each, 0, "", None, 512 + each * row)
        for number, size in enumerate(sizes)
        for row in range(size)
    ]
    monkeypatch.setattr(encoded_images, "WINDOW", 32 * each)
    return Encoded(files, 8, 100)


def test_an_epoch_of_pieces(monkeypatch: pytest.MonkeyPatch):
    """32 images in a window, two in a piece: each window mixes sixteen pieces, which lie side by side in a shard."""
    images = remote([40, 41, 39], 1000, monkeypatch)
    assert images.window == 32 and {len(piece) for piece in images.pieces} == {1, 2}
    orders = [piece_order(3, epoch, images) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(120)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert torch.equal(orders[1], piece_order(3, 1, remote([40, 41, 39], 1000, monkeypatch)))
    assert not torch.equal(orders[1], piece_order(4, 1, images))
    for window in orders[0].split(32)[:3]:
        whole = [piece for piece in images.pieces if set(piece.tolist()) <= set(window.tolist())]
        assert (window.diff() == 1).sum() < 8, "the two of a piece do not follow each other, but by chance"
        assert len(whole) >= 15 and len({images.files[row].path for row in window.tolist()}) == 3
    steps = torch.cat([batch_rows(step, images, 16, seed=3) for step in range(7)])
    assert torch.equal(steps, orders[0][:112])


def test_files_of_a_disk_are_shuffled_as_a_whole(images: Encoded):
    assert not images.pieces
    assert torch.equal(batch_rows(0, images, 16, seed=3), epoch_order(3, 0, 60)[:16])


def test_blocks_are_fetched_once_and_forgotten(monkeypatch: pytest.MonkeyPatch):
    content, asked = bytes(range(256)) * 4, []

    def fetch(url: str, start: int, stop: int | None, known: int) -> bytes:
        asked.append((start, stop))
        return content[start:stop]

    monkeypatch.setattr(stores, "BLOCK", 100)
    monkeypatch.setattr(stores, "fetch", fetch)
    blocks = stores.Blocks(most=300)
    member = File("a", "s3://b/x.tar", 130, 0, "", None, 250)
    assert blocks.read(member) == content[250:380] and sorted(asked) == [(200, 300), (300, 400)]
    assert blocks.read(member) == content[250:380] and len(asked) == 2
    assert blocks.read(File("b", "s3://b/x.tar", 200, 0, "", None, 600)) == content[600:800]
    assert blocks.held <= 300 and blocks.read(member) == content[250:380] and len(asked) >= 5
    assert blocks.read(File("c", "s3://b/c.jpg", 1024)) == content
    with pytest.raises(InputError, match=r"'s3://b/x.tar' was changed or cut short .* it has 24 of 50 bytes of 'd'"):
        blocks.read(File("d", "s3://b/x.tar", 50, 0, "", None, 1000))


# Faults


def test_a_shard_that_is_cut_short(tmp_path: Path):
    path = shards(tmp_path / "data", FILES[:10], 10) / "part-000.tar"
    whole = path.read_bytes()
    for size, why in (
        (5000, r"'0000\d\.jpg' ends at byte [\d,]+"),
        (len(whole) // 10240 * 10240 - 10240, "ends at byte|marked"),
    ):
        path.write_bytes(whole[:size])
        with pytest.raises(
            InputError, match=rf"shard '.*part-000\.tar' is (cut short: .*({why}).* but the file has|damaged)"
        ):
            load(path, "stream")
    path.write_bytes(b"no tar file at all" * 100)
    assert "is damaged or no tar file: " in refused("pretrain", str(path), "--out", str(tmp_path / "run"))
    path.write_bytes(whole)
    assert len(load(path, "stream")[0]) == 10


def test_an_end_that_is_not_marked(tmp_path: Path):
    path = shard(tmp_path / "a.tar", [("a.jpg", FILES[0])])
    path.write_bytes(path.read_bytes()[: 512 + -(-len(FILES[0]) // 512) * 512])
    with pytest.raises(InputError, match=r"is cut short: its end is not marked, but the file has [\d,]+ bytes"):
        load(path, "stream")


@pytest.mark.parametrize("decode", ["ahead", "stream"])
def test_a_member_that_is_no_image(tmp_path: Path, decode: str):
    members = [(f"{row}.jpg", content) for row, content in enumerate([*FILES[:9], b"text", b""])]
    path = shard(tmp_path / "a.tar", members)
    with pytest.raises(
        InputError, match=r"2 of 11 files were skipped, more than max_skipped 0\.1: see '.*skipped\.csv'"
    ):
        load(path, decode)
    found = load(path, decode, max_skipped=0.2)[0]
    assert list(found.ids) == [f"a.tar/{row}.jpg" for row in range(9)]


def test_a_compressed_shard(tmp_path: Path):
    import gzip

    path = shard(tmp_path / "a.tar", [("a.jpg", FILES[0])])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"shard '.*a\.tar' is damaged or no tar file"):
        load(path, "stream")


def test_files_that_changed_since_the_index(tmp_path: Path):
    path = loose(tmp_path / "data", FILES)
    images = load(path, "stream")[0].images
    os.utime(path / "00002.jpg", ns=(0, 1))  # of the same size
    with pytest.raises(InputError, match=r"'.*00002\.jpg' was changed while its images were in use"):
        images[2]
    (path / "00003.jpg").write_bytes(FILES[4])
    with pytest.raises(InputError, match=r"'.*00003\.jpg' was changed while its images were in use"):
        images[3]
    assert torch.equal(load(path, "stream")[0].images[3], load(path, "stream")[0].images[4]), "a new index"
    (path / "00005.jpg").unlink()
    with pytest.raises(InputError, match=r"'.*00005\.jpg' cannot be read: No such file or directory"):
        images[5]


def test_a_damaged_image_is_gray_and_too_many_are_an_error(tmp_path: Path, capsys):
    large = encoded(pixels(0, 64, 64), "PNG")
    path = loose(tmp_path / "data", [*FILES[:8], large[: len(large) // 2], large[: len(large) // 2]])
    found = load(path, "stream", max_skipped=0.1)[0]
    assert (found.images[8:9] == GRAY).all() and not (found.images[7:8] == GRAY).all()
    assert "image '00008.jpg' is damaged and stays gray: it is damaged" in capsys.readouterr().err
    assert (found.images[8:9] == GRAY).all() and not capsys.readouterr().err, "said once"
    with pytest.raises(InputError, match=r"2 of 10 images are damaged, more than max_skipped 0\.1: the last is '00009"):
        found.images[:]


def test_a_set_too_large_to_be_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = load(loose(tmp_path / "data", FILES), "stream")[0]
    monkeypatch.setattr("crlf.runtime.devices.memory_there", lambda device: 1000)
    with pytest.raises(InputError, match=r"60 decoded images take 11\.5 kB, more than half of the free memory"):
        _ = found.decoded


def test_shards_of_a_store_give_the_rows_of_the_disk(tmp_path: Path):
    """fsspec's store in memory; tests/data/test_stores.py has one that speaks S3."""
    import fsspec

    here = shards(tmp_path / "shards", FILES, 25, labels=3)
    store = fsspec.filesystem("memory")
    for file in here.iterdir():
        store.pipe_file(f"/crlf-shards/{file.name}", file.read_bytes())
    stores.blocks.cache_clear()
    stores.require_same.cache_clear()
    there = data.load("memory://crlf-shards", None, ImageSettings(image_size=8))[0]
    alike(load(here, "ahead")[0], there)
    assert isinstance(there.images, Encoded) and len(there.images.pieces) == 3
    store.pipe_file("/crlf-shards/part-001.tar", b"other")
    stores.blocks.cache_clear()
    stores.require_same.cache_clear()
    with pytest.raises(InputError, match=r"'memory://crlf-shards/part-001\.tar' was changed while its images"):
        there.images[:]
    store.rm("/crlf-shards", recursive=True)
    with pytest.raises(InputError, match=r"data 'memory://crlf-shards' (has no files|does not exist)"):
        data.load("memory://crlf-shards", None, ImageSettings(image_size=8))


def test_a_damaged_image_counts_in_the_whole_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One of twenty images is within a tenth, though it is one of the two to test on; and it is named once."""
    large = encoded(pixels(0, 64, 64), "PNG")
    path = loose(tmp_path / "data", [*FILES[:19], large[: len(large) // 2]])
    whole = load(path, "stream")[0].images
    assert isinstance(whole, Encoded)
    for part in (whole.part([18, 19]), whole.part(slice(10, None)).part(slice(8, 10)), whole):
        assert (part[-1] == GRAY).all() and not (part[-2] == GRAY).all()
    assert capsys.readouterr().err.count("is damaged and stays gray") == 1


def test_any_whole_number_is_a_row(images: Encoded):
    for row in (np.int64(3), torch.tensor(3), -57):
        assert torch.equal(images[row], images[3]) and images[row].shape == (3, 8, 8)


def test_threads_are_shared_by_the_processes_of_a_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert encoded_images.threads() == 2, "without torchrun all are taken to be on this host"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert encoded_images.threads() == 4
