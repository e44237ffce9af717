"""An object store: moto's server, which speaks S3 on this machine (pip install 'moto[server]' s3fs)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from terminal import refused
from tiny_shards import jpegs, loose, shards

import crlf
from crlf import data
from crlf.data import ImageSettings
from crlf.data.encoded import Encoded
from crlf.data.files import stores
from crlf.data.loader import batch_rows
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.run import LOSS

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets of the server's threads
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of botocore and moto
]
FILES = jpegs(60)
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address; the bucket `pictures` holds the same images loose and in shards."""
    held = moto.ThreadedMotoServer(port=0, verbose=False)
    held.start()
    host, port = held.get_host_and_port()
    yield f"http://{host}:{port}"
    held.stop()


@pytest.fixture(autouse=True)
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    forget()
    fs = stores.store("s3")
    if not fs.exists("pictures"):
        fs.mkdir("pictures")
    shards(tmp_path / "shards", FILES, 25, labels=3)
    loose(tmp_path / "loose", FILES)
    for folder in ("shards", "loose"):
        for file in sorted((tmp_path / folder).iterdir()):
            fs.put_file(str(file), f"pictures/{folder}/{file.name}")
    yield fs
    fs.rm("pictures", recursive=True)
    forget()


def forget() -> None:
    for held in (stores.store, stores.blocks, stores.require_same):
        held.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def load(path: str | Path, decode: str = "auto") -> data.ImageSet:
    return data.load(str(path), None, ImageSettings(image_size=8, decode=decode))[0]


@pytest.mark.parametrize("folder", ["loose", "shards"])
def test_rows_are_those_on_the_disk(tmp_path: Path, folder: str, capsys):
    there, here = load(f"s3://pictures/{folder}"), load(tmp_path / folder, "ahead")
    assert (
        "decoded while they are used, not ahead (--decode): the files are in an object store" in capsys.readouterr().err
    )
    assert isinstance(there.images, Encoded) and torch.equal(there.decoded, here.decoded)
    assert list(there.ids) == list(here.ids)
    ahead = load(f"s3://pictures/{folder}", "ahead")
    assert isinstance(ahead.images, torch.Tensor) and torch.equal(ahead.images, here.decoded)
    if there.labels is not None and here.labels is not None:
        assert torch.equal(there.labels, here.labels)
    assert (there.labels is None) == (folder == "loose")


def tiny(path: str | Path, decode: str = "auto") -> Recipe:
    settings = ImageSettings(image_size=16, decode=decode)
    return Recipe(data=str(path), batch_size=16, views=2, epochs=2, images=settings)


def test_training_from_single_objects_has_the_bits_of_the_disk(tmp_path: Path):
    here = crlf.pretrain(tiny(tmp_path / "loose", "ahead"), out=tmp_path / "here", device="cpu")
    there = crlf.pretrain(tiny("s3://pictures/loose"), out=tmp_path / "there", device="cpu")
    assert here.file(LOSS).read_bytes() == there.file(LOSS).read_bytes()


def test_training_from_shards_repeats_itself_and_goes_on(tmp_path: Path):
    runs = [crlf.pretrain(tiny("s3://pictures/shards"), out=tmp_path / name, device="cpu") for name in "ab"]
    assert runs[0].file(LOSS).read_bytes() == runs[1].file(LOSS).read_bytes()
    crlf.embed(runs[0])
    assert runs[0].array("train_emb.npy").shape[0] == 60


def test_ranks_share_the_batches_of_shards(tmp_path: Path):
    """Two processes take the same batches, each its half, and end with the weights of one."""
    program = (
        "import sys, crlf; from crlf.data import ImageSettings; from crlf.recipe import Recipe\n"
        "crlf.pretrain(Recipe(data='s3://pictures/shards', batch_size=16, views=2, epochs=2, precision='float32',"
        " images=ImageSettings(image_size=16)), out=sys.argv[1], device='cpu')"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, "-c", program, str(tmp_path / "one")]
    (tmp_path / "program.py").write_text(program)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "program.py")]
    for command in (alone, [sys.executable, *two, str(tmp_path / "two")]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    one, other = (crlf.Run(tmp_path / name).array(LOSS) for name in ("one", "two"))
    assert abs(one - other).max() < 1e-4, (one, other)


def test_new_images_of_a_store_are_embedded(tmp_path: Path):
    run = crlf.pretrain(dataclasses.replace(tiny(tmp_path / "loose"), epochs=1), out=tmp_path / "run", device="cpu")
    tables = [
        crlf.embed(run, path, out=tmp_path / f"{number}.parquet", device="cpu").with_suffix(".npy").read_bytes()
        for number, path in enumerate((tmp_path / "shards", "s3://pictures/shards", "s3://pictures/loose"))
    ]
    assert tables[0] == tables[1] == tables[2]


# Faults


def test_a_store_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "data 's3://nowhere/x'" in refused("pretrain", "s3://nowhere/x", "--out", str(tmp_path / "run"))
    forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match=r"data 's3://pictures/loose' cannot be read: the store says .*127\.0\.0\."):
        load("s3://pictures/loose")


def test_a_store_that_refuses_in_training(bucket: Any):
    images = load("s3://pictures/shards").images
    bucket.rm("pictures/shards/part-001.tar")
    stores.blocks.cache_clear()
    stores.require_same.cache_clear()
    with pytest.raises(InputError, match=r"data 's3://pictures/shards/part-001\.tar' does not exist"):
        images[:]


def test_shards_that_changed_since_the_index(bucket: Any):
    images = load("s3://pictures/shards").images
    bucket.pipe_file("pictures/shards/part-001.tar", bucket.cat_file("pictures/shards/part-000.tar"))
    stores.blocks.cache_clear()
    stores.require_same.cache_clear()
    with pytest.raises(InputError, match=r"'s3://pictures/shards/part-001\.tar' was changed while its images"):
        images[:]
    again = load("s3://pictures/shards")  # a new index: the second shard has the images of the first
    rows = {name: row for row, name in enumerate(again.ids)}
    pair = [rows[f"part-{number:03}.tar/00003.jpg"] for number in (0, 1)]
    assert torch.equal(again.images[pair[:1]], again.images[pair[1:]])


def test_a_shard_that_is_cut_short(bucket: Any):
    whole = bucket.cat_file("pictures/shards/part-001.tar")
    bucket.pipe_file("pictures/shards/part-001.tar", whole[:7000])
    with pytest.raises(InputError, match=r"shard 's3://pictures/shards/part-001\.tar' is (cut short|damaged)"):
        load("s3://pictures/shards")


def test_batches_are_pieces_of_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.data.encoded.WINDOW", 1)
    images = load("s3://pictures/shards").images
    assert isinstance(images, Encoded) and images.window == 16 and len(images.pieces) == 60
    epoch = [batch_rows(step, images, 16, seed=0) for step in range(3)]
    assert len(set(torch.cat(epoch).tolist())) == 48
