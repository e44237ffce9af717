"""Embedding by Ray Data on a cluster of two raylets of this machine: the rows and bits of `crlf embed`, also when a
worker or a host is killed."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from terminal import refused
from tiny_shards import jpegs, loose, shards

import crlf
from crlf.data import ImageSettings
from crlf.data.stream import Files, Part
from crlf.embedding import on_ray
from crlf.embedding.embed import embed_images, image_shape, load_encoder, open_source
from crlf.errors import InputError
from crlf.recipe import Recipe

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # of Ray's: sockets that it leaves open, and its own changes to come
]
FILES = jpegs(120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    small = {"num_cpus": 2, "object_store_memory": 200_000_000}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(**small)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run, and images as files, in shards and in a table."""
    place = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRLF_CACHE", str(place / "cache"))
        loose(place / "loose", FILES)
        (place / "loose" / "00007.jpg").write_bytes(b"no image")
        shards(place / "shards", FILES, 50)
        pq.write_table(pa.table({"image": FILES}), place / "table.parquet")
        recipe = Recipe(
            data=str(place / "shards"), batch_size=16, views=2, epochs=1, images=ImageSettings(image_size=16)
        )
        crlf.pretrain(recipe, out=place / "run", device="cpu")
        yield place


def rows_of(path: Path) -> pa.Table:
    return (
        pyarrow.dataset.dataset(str(path)).to_table()
        if path.is_file()
        else pa.concat_tables(pq.read_table(part) for part in sorted(path.glob("*.parquet")))
    )


@pytest.mark.parametrize("source", ["loose", "shards", "table.parquet"])
def test_rows_and_bits_are_those_of_one_machine(folder, cluster, tmp_path, source, monkeypatch, capsys):
    monkeypatch.setattr(on_ray, "ROWS", 50)
    asked: dict[str, Any] = {"batch_size": 16, "device": "cpu"}
    here = crlf.embed(folder / "run", folder / source, out=tmp_path / "here.parquet", **asked)
    there = crlf.embed(folder / "run", folder / source, out=tmp_path / "there", engine="ray", **asked)
    assert rows_of(there).equals(rows_of(here)) and len(rows_of(here)) == 120 - (source == "loose")
    assert len(list(there.glob("part-*.parquet"))) == 2
    assert pq.read_schema(there / "part-00000.parquet").metadata[b"crlf.source"] == str(folder / source).encode()
    assert (there / "skipped.csv").exists() == (source == "loose")
    assert "embeddings of length" in capsys.readouterr().out


def parts(folder: Path, embed: Callable[..., np.ndarray]) -> tuple[on_ray.Reading, on_ray.Turning]:
    run = crlf.Run.open(folder / "run")
    source = open_source(str(folder / "shards"), image_shape(run), run.recipe, None)
    encoder = load_encoder(run, run.recipe, torch.Size(image_shape(run)))
    turning = on_ray.Turning(encoder, run.recipe.normalisation, "cpu", embed, torch.get_num_threads())
    return on_ray.Reading(source, len(source), 8), turning


def slow(mark: str, *arguments: Any) -> np.ndarray:
    """Embeds; the first worker that comes to its third batch dies of it, if there is a mark to make."""
    time.sleep(0.3)
    slow.count = getattr(slow, "count", 0) + 1  # type: ignore[attr-defined]
    if mark and slow.count == 3 and not os.path.exists(mark):  # type: ignore[attr-defined]
        Path(mark).write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return embed_images(*arguments)


def test_a_worker_that_is_killed_costs_nothing(folder: Path, cluster: Any, tmp_path: Path):
    reading, turning = parts(folder, functools.partial(slow, str(tmp_path / "mark")))
    rows, skipped = on_ray.write(reading, turning, tmp_path / "out", "shards")
    assert (rows, skipped) == (120, 0) and (tmp_path / "mark").read_text() == "killed"
    same(folder, tmp_path / "out")


def same(folder: Path, out: Path) -> None:
    here = crlf.embed(folder / "run", folder / "shards", out=out.with_suffix(".parquet"), batch_size=8, device="cpu")
    assert rows_of(out).equals(rows_of(here))


def test_a_host_that_dies_costs_nothing(folder: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reading, turning = parts(folder, functools.partial(slow, ""))
    host = cluster.add_node(num_cpus=2, object_store_memory=200_000_000)
    before, count = on_ray.Tables.add, []

    def add(self: on_ray.Tables, part: Part, rows: np.ndarray) -> None:
        before(self, part, rows)
        count.append(len(part.ids))
        if len(count) == 2:
            cluster.remove_node(host, allow_graceful=False)

    monkeypatch.setattr(on_ray.Tables, "add", add)
    assert on_ray.write(reading, turning, tmp_path / "out", "shards") == (120, 0)
    same(folder, tmp_path / "out")


def test_the_error_of_a_worker_is_one_line_and_leaves_nothing(folder: Path, cluster: Any, tmp_path: Path):
    place = shards(tmp_path / "shards", FILES[:40], 20)
    run = crlf.Run.open(folder / "run")
    source = open_source(str(place), image_shape(run), run.recipe, None)
    assert isinstance(source, Files)
    os.utime(place / "part-001.tar", (1, 1))
    _, turning = parts(folder, embed_images)
    with pytest.raises(InputError, match=r"^'[^\n]*part-001\.tar' was changed while its images were in use[^\n]*$"):
        on_ray.write(on_ray.Reading(source, len(source), 8), turning, tmp_path / "out", "shards")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_wrong_uses(folder: Path, tmp_path: Path):
    run, images = str(folder / "run"), str(folder / "loose")
    assert "engine 'spark' is not known" in refused("embed", run, images, "--engine", "spark")
    assert "engine 'ray' is for new images, but no path is given" in refused("embed", run, "--engine", "ray")
    named = refused("embed", run, images, "--engine", "ray", "--out", str(tmp_path / "a.parquet"))
    assert "must be a folder, without a suffix, for engine 'ray'" in named
    (tmp_path / "file").write_text("mine")
    taken = refused("embed", run, images, "--engine", "ray", "--overwrite", "--out", str(tmp_path / "file"))
    assert "must be a folder for engine 'ray', and it is a file" in taken
    on_ray.require_free(tmp_path / "photos.v2_embeddings", False)  # as the default name of a folder photos.v2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    taken = refused("embed", run, images, "--engine", "ray", "--overwrite", "--out", str(tmp_path / "full"))
    assert "--overwrite replaces a folder of tables alone" in taken and (tmp_path / "full" / "letter.txt").exists()
