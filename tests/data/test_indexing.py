"""Edge cases of indexes: many files, several writers, odd names, and stores that fail for a while."""

from __future__ import annotations

import io
import tarfile
import threading
import time
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from tiny_shards import jpegs, loose, shard, shards

from crlf import data
from crlf.data import ImageSettings, loader
from crlf.data.encoded import Encoded
from crlf.data.files import decode_cache, listing, on_demand, stores, tars
from crlf.data.files.collection import of_files
from crlf.data.files.decode import image_size
from crlf.data.files.listing import File
from crlf.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")
FILES = jpegs(12)


@pytest.mark.parametrize("module", [decode_cache, on_demand])
def test_the_work_does_not_grow_with_the_square_of_the_files(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counted = []

    def counting(outcomes):
        counted.append(len(outcomes))
        return sum(not outcome.skipped for outcome in outcomes)

    files = [File(f"{row}.jpg", "", skipped="no reason") for row in range(64)]
    monkeypatch.setattr(module, "images", counting)
    monkeypatch.setattr(module, "BATCH", 1)
    if module is decode_cache:
        decode_cache.decode_all(of_files(files, "here"), 8, 100, tmp_path, 64)
    else:
        on_demand.looked_at(files, 100, 64)
    assert sum(counted) <= 3 * len(files)


def test_the_bar_of_a_continued_decoding_begins_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collection = of_files(listing.in_folder(loose(tmp_path / "data", FILES), False), "here")
    folder = tmp_path / "cache"
    folder.mkdir()
    decode_cache.decode_all(collection, 8, 10_000, folder, 4)
    bars = []

    class Bar(decode_cache.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(decode_cache, "tqdm", Bar)
    assert len(decode_cache.decode_all(collection, 8, 10_000, folder, 12)) == 12
    assert [bar.n for bar in bars] == [12]


def test_a_large_tiff_is_not_in_the_index(tmp_path: Path):
    """As it is not among the decoded images."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    assert image_size(io.BytesIO(file.getvalue()), 600) == (30, 20)
    with pytest.raises(InputError, match="it has 30 × 20 pixels, more than 599"):
        image_size(io.BytesIO(file.getvalue()), 599)


def test_a_file_is_written_by_several_at_once(tmp_path: Path):
    path, whole = tmp_path / "index.json", b"x" * 300_000
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(10):
                decode_cache.write_whole(path, whole)
                assert path.read_bytes() == whole
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and list(tmp_path.iterdir()) == [path]


def test_the_choice_to_decode_ahead_stays_when_it_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collection = of_files(listing.in_folder(loose(tmp_path / "data", FILES), False), "here")
    folder = tmp_path / "cache"
    folder.mkdir()
    room, need = namedtuple("room", "free"), 12 * 3 * 8 * 8
    monkeypatch.setattr("shutil.disk_usage", lambda place: room(2 * need))
    assert on_demand.reason("auto", collection, 8, folder) == ""
    decode_cache.decode_all(collection, 8, 10_000, folder, 6)
    monkeypatch.setattr("shutil.disk_usage", lambda place: room(2 * need - need // 2))
    assert on_demand.reason("auto", collection, 8, folder) == ""


# Shards


def test_names_with_empty_folders():
    """Keys of a store may have any slashes, and Windows has other separators than a name."""
    import fsspec

    store = fsspec.filesystem("memory")
    path = Path("a") / "b.tar"
    found = [File("a//b.tar", "memory://odd/a//b.tar", 1)]
    assert list({Path(file.name): file for file in found}) == [path]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(FILES[0])
        tar.addfile(member, io.BytesIO(FILES[0]))
    store.pipe_file("/odd/b.tar", buffer.getvalue())
    there = File("a//b.tar", "memory://odd/b.tar", len(buffer.getvalue()))
    train, test = tars.collections("odd", [there], True, -1.0, 0, 10_000)
    assert list(train.names) == ["a//b.tar/a.jpg"] and test is None
    store.rm("/odd", recursive=True)


def test_a_member_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "LARGEST", len(FILES[1]))
    path = shard(tmp_path / "a.tar", [("0.jpg", FILES[0] + b"\0" * 1000), ("1.jpg", FILES[1])])
    first, second = tars.members(listing.look_at("a.tar", str(path)))
    assert first.size == len(FILES[0]) + 1000 and first.why == "it is larger than 0 MB" and not first.pixels
    assert second.size == len(FILES[1]) and not second.why and second.pixels


def test_filters_of_warnings_are_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However the threads that go through the shards end."""
    files = [listing.look_at(p.name, str(p)) for p in sorted(shards(tmp_path / "data", FILES, 1).iterdir())]
    before, look = list(warnings.filters), tars.looked_at
    begun = threading.Barrier(2)

    def slowly(*arguments):
        if arguments[0].startswith(("00000", "00001")):  # both have begun, and the first ends first
            begun.wait(10)
            time.sleep(0.2 * arguments[0].startswith("00001"))
        return look(*arguments)

    monkeypatch.setattr(tars, "looked_at", slowly)
    assert len(tars.unpacked(files)) == 12
    assert list(warnings.filters) == before


def test_a_test_split_without_labels_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labelled = [(f"{i}.{kind}", what) for i, jpeg in enumerate(FILES) for kind, what in
                (("jpg", jpeg), ("cls", str(i % 2).encode()))]  # fmt: skip
    shard(tmp_path / "data" / "train-0.tar", labelled[:-1])
    shard(tmp_path / "data" / "test-0.tar", [(f"{i}.jpg", jpeg) for i, jpeg in enumerate(FILES)])
    train, test = data.load(str(tmp_path / "data"), None, ImageSettings(image_size=8))
    assert len(train) == 11 and test is train, "tested by cross-validation"
    said = capsys.readouterr().err
    assert "of split 'test' no label is known, so it is not used" in said
    assert "1 of 12 labels in '.cls' to train on are missing" in said


# Stores that fail for a while


def test_a_block_that_failed_is_fetched_again(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(url: str, start: int, stop: int | None, known: int) -> bytes:
        asked.append(start)
        if len(asked) == 1:
            raise InputError("data 's3://b/x.jpg' cannot be read: the store says 'try again'")
        return b"12345"

    monkeypatch.setattr(stores, "fetch", fetch)
    blocks = stores.Blocks()
    with pytest.raises(InputError, match="try again"):
        blocks.read(File("a", "s3://b/x.jpg", 5))
    assert blocks.read(File("a", "s3://b/x.jpg", 5)) == b"12345" and blocks.held == 5


def test_training_that_ends_does_not_wait_for_what_is_ahead(monkeypatch: pytest.MonkeyPatch):
    asked, stop = [], threading.Event()
    jpeg = FILES[0]

    def fetch(url: str, start: int, end: int | None, known: int) -> bytes:
        asked.append(url)
        if len(asked) > 20:
            stop.wait(20)
        return jpeg.ljust(stores.BLOCK, b"\0")

    monkeypatch.setattr(stores, "fetch", fetch)
    stores.blocks.cache_clear()
    files = [File(str(i), f"s3://b/{i}.tar", len(jpeg), 0, "", None, 0) for i in range(200)]
    images = Encoded(files, 8, 10_000)
    assert images.pieces
    with loader.DecodeAhead(
        images, lambda step: torch.arange(200)[step * 4 : step * 4 + 4], torch.device("cpu")
    ) as found:
        found[0]
        waiting = [block for block, _ in stores.blocks().kept.values() if not block.done()]
        assert len(waiting) > stores.AT_ONCE
        threading.Timer(0.5, stop.set).start()
    left = [block for block, _ in stores.blocks().kept.values() if not block.done()]
    assert len(left) <= stores.AT_ONCE and sum(block.cancelled() for block in waiting) >= 100
    assert stores.blocks().held == sum(size for _, size in stores.blocks().kept.values())
    stores.blocks().threads.shutdown()
    stores.blocks.cache_clear()
    assert len(asked) < 60
