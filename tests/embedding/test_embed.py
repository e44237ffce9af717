"""New images to embeddings: the right row for the right file, streamed, on one process or several."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from terminal import refused

import crlf
from crlf import cli
from crlf.data import stream
from crlf.data.files.decode import KINDS, decode
from crlf.embedding.table import GROUP, Table, Writer, join
from crlf.errors import InputError
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, RECIPE
from crlf.runtime import distributed

ROOT = Path(__file__).parents[2]
TINY = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    made = crlf.pretrain(TINY, out=tmp_path_factory.mktemp("made") / "run", device="cpu")
    return crlf.embed(made, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images of several sizes and kinds, nested, and two files that are none."""
    folder, random = tmp_path_factory.mktemp("photos") / "my photos", np.random.default_rng(0)
    for i in range(23):
        path = folder / ["", "ä b", "x/" + "long " * 40][i % 3] / f"{i:02}.{['png', 'jpg'][i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(path)
    (folder / "05x.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    return folder


def embed(run: crlf.Run, path: object, out: Path, *more: str) -> pa.Table:
    assert cli.main(["embed", str(run.path), str(path), "--out", str(out), "--device", "cpu", *more]) == 0
    return pq.read_table(out)


def matrix(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


# The table of a run


def test_the_table_of_a_run_is_its_arrays(run: crlf.Run):
    table = pq.read_table(run.file("embeddings.parquet"))
    assert table.schema.names == ["id", "split", "label", "class", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 1792)
    assert table["split"].to_pylist() == ["train"] * 64 + ["test"] * 64
    assert np.array_equal(matrix(table), np.vstack([run.array("train_emb.npy"), run.array("test_emb.npy")]))
    labels = [*run.array("train_lbl.npy"), *run.array("test_lbl.npy")]
    classes = crlf.data.load("shapes")[0].classes
    assert table["label"].to_pylist() == labels and table["class"].to_pylist() == [classes[i] for i in labels]
    assert table["id"].to_pylist()[:2] == ["train/00000", "train/00001"]


def test_embeddings_flow_one_way(run: crlf.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The table and the arrays are written in one pass: what was just written is not read again, nor held as a whole.

    A group of the table goes out as soon as it is full, and may hold rows of both splits.
    """
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    for path in (*copy.glob("*_emb.npy"), copy / "embeddings.parquet"):
        path.unlink()
    monkeypatch.setattr(np, "load", lambda *words, **more: pytest.fail(f"{words} was read"))
    monkeypatch.setattr("crlf.embedding.table.GROUP", 24)
    crlf.embed(copy, device="cpu", batch_size=10)
    monkeypatch.undo()
    for name in ("train_emb.npy", "test_emb.npy"):
        np.testing.assert_allclose(np.load(copy / name), run.array(name), atol=1e-5)
    table = pq.ParquetFile(copy / "embeddings.parquet")
    assert [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)] == [24] * 5 + [8]
    rows = [np.load(copy / name) for name in ("train_emb.npy", "test_emb.npy")]
    assert np.array_equal(matrix(table.read()), np.vstack(rows))
    assert table.read()["id"].to_pylist() == [*run.ids("train"), *run.ids("test")]
    assert table.read()["label"].to_pylist() == [*run.array("train_lbl.npy"), *run.array("test_lbl.npy")]


def test_a_table_is_written_in_groups_and_keeps_its_order(tmp_path: Path):
    rows = np.arange(5 * GROUP // 2 * 3, dtype=np.float32).reshape(-1, 3)
    names = [f"{i}\udcff" if i == 7 else str(i) for i in range(len(rows))]  # a file name that is no UTF-8
    with (tmp_path / "t.parquet").open("wb") as file, Writer(file, 3, "here") as writer:
        for start in range(0, len(rows), 500):
            writer.add(names[start : start + 500], rows[start : start + 500])
    with Table(tmp_path / "t.parquet") as table:
        assert (len(table), table.dim, table.source, table.file.num_row_groups) == (len(rows), 3, "here", 3)
        assert np.array_equal(np.vstack(list(table.embeddings())), rows)
    whole = pq.read_table(tmp_path / "t.parquet")
    assert whole["id"].to_pylist()[6:9] == ["6", "7\\udcff", "8"]
    assert whole["label"].null_count == whole["split"].null_count == len(rows)
    codecs = {c["path_in_schema"]: c["compression"] for c in map_columns(tmp_path / "t.parquet")}
    assert codecs["id"] == "ZSTD" and codecs["embedding.list.element"] == "UNCOMPRESSED"


def map_columns(path: Path) -> list[dict]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(i).to_dict() for i in range(group.num_columns)]


# New images


def test_a_row_is_the_embedding_of_its_file(run: crlf.Run, photos: Path, tmp_path: Path, capsys):
    table = embed(run, photos, tmp_path / "a.parquet", "--batch-size", "7")
    names = table["id"].to_pylist()
    files = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*"))
    assert names == [name for name in files if name not in ("05x.png", "empty.png")] and len(names) == 23
    assert set(table["label"].to_pylist()) == set(table["split"].to_pylist()) == {None}
    encoder = crlf.load(run, device="cpu")
    for name, row in zip(names, matrix(table), strict=True):
        pixels = decode((photos / name).read_bytes(), 32)
        assert np.allclose(encoder.encode(pixels)[0], row, atol=1e-6), name
    assert np.array_equal(np.load(tmp_path / "a.npy"), matrix(table))
    assert table.schema.metadata[b"crlf.source"].decode() == str(photos)
    with (tmp_path / "a_skipped.csv").open() as file:
        assert dict(csv.reader(file)) == {
            "path": "reason",
            "05x.png": f"it is no {KINDS}",
            "empty.png": "it is empty",
        }
    said = capsys.readouterr().out
    assert "23 embeddings of length 1792" in said and "files skipped: 2" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.parquet", "a_skipped.csv"]


def test_every_kind_of_source(run: crlf.Run, photos: Path, tmp_path: Path):
    images = crlf.data.load("shapes")[0].images[:64].numpy()
    own = run.array("train_emb.npy")
    np.save(tmp_path / "first.npy", images)
    np.savez(tmp_path / "last.npz", images=images.transpose(0, 2, 3, 1))
    for name in ("first.npy", "last.npz"):
        table = embed(run, tmp_path / name, tmp_path / "t.parquet", "--overwrite")
        assert np.array_equal(matrix(table), own) and table["id"][63].as_py() == f"{name}/00063"
    Image.fromarray(images[5].transpose(1, 2, 0)).save(tmp_path / "öne.png")
    table = embed(run, tmp_path / "öne.png", tmp_path / "t.parquet", "--overwrite")
    assert table["id"].to_pylist() == ["öne.png"] and np.allclose(matrix(table), own[5:6], atol=1e-6)
    (tmp_path / "list.txt").write_text(f"öne.png\n{photos / '00.png'}\n", encoding="utf-8")
    table = embed(run, tmp_path / "list.txt", tmp_path / "t.parquet", "--overwrite")
    assert table["id"].to_pylist() == ["öne.png", str(photos / "00.png")]
    assert np.allclose(matrix(table)[:1], own[5:6], atol=1e-6)
    table = embed(run, "shapes", tmp_path / "t.parquet", "--overwrite", "--batch-size", "999")
    assert len(table) == 2500 and table["split"].to_pylist()[1999:2001] == ["train", "test"]
    assert np.allclose(matrix(table)[:64], own, atol=1e-5) and None not in table["class"].to_pylist()


def test_sets_come_in_parts_with_their_own_labels():
    train, test = (split.first(count) for split, count in zip(crlf.data.load("shapes"), (23, 11), strict=True))
    source = stream.Sets("shapes", train, test, (3, 32, 32))
    parts = list(source.parts(range(len(source)), 5))
    assert [len(part.ids) for part in parts] == [5, 5, 5, 5, 3, 2, 5, 4]  # a part may end within a batch
    for split, name in ((train, "train"), (test, "test")):
        own = [part for part in parts if part.split == name]
        assert [one for part in own for one in part.ids] == list(split.ids)
        assert np.concatenate([part.labels for part in own]).tolist() == split.labels.tolist()
        assert np.array_equal(np.concatenate([part.images for part in own]), split.images)


def test_an_array_in_parts_has_the_names_of_its_rows(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    parts = list(stream.Array(tmp_path / "a.npy", (3, 8, 8)).parts(range(2, 9), 3))
    assert [name for part in parts for name in part.ids] == [f"a.npy/{row:05}" for row in range(2, 9)]
    assert np.array_equal(np.concatenate([part.images for part in parts]), images[2:])


def test_shards_are_joined_in_their_order(tmp_path: Path):
    shards = [tmp_path / f"shard{rank}" for rank in range(3)]
    for rank, shard in enumerate(shards):
        with shard.open("wb") as file, Writer(file, 2, "here") as writer:
            writer.add([f"{rank}/{i}" for i in range(rank + 1)], np.full((rank + 1, 2), rank, np.float32))
    assert join(shards, tmp_path / "t.parquet") == 6
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["id"].to_pylist() == ["0/0", "1/0", "1/1", "2/0", "2/1", "2/2"]
    assert matrix(table)[:, 0].tolist() == np.load(tmp_path / "t.npy")[:, 0].tolist() == [0, 1, 1, 2, 2, 2]


def test_the_default_name_is_that_of_the_path(run: crlf.Run, photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert crlf.embed(run, photos, device="cpu") == Path("my photos_embeddings.parquet")
    monkeypatch.chdir(photos / "ä b")
    try:
        assert crlf.embed(run, ".", device="cpu") == Path("ä b_embeddings.parquet")
    finally:
        for path in Path.cwd().glob("*_embeddings*"):
            path.unlink()


def test_settings_of_the_recipe_are_kept(tmp_path: Path):
    random = np.random.default_rng(1)
    np.save(tmp_path / "wide.npy", random.integers(0, 256, (40, 20, 30, 3), dtype=np.uint8))
    scaled = Recipe(data=str(tmp_path / "wide.npy"), images=crlf.data.ImageSettings(image_size=16), batch_size=8,
                    views=2, epochs=1, normalisation=Normalisation(mean=(0.2,), std=(0.7,)))  # fmt: skip
    own = crlf.embed(crlf.pretrain(scaled, out=tmp_path / "run", device="cpu"), device="cpu")
    table = embed(own, tmp_path / "wide.npy", tmp_path / "t.parquet", "--batch-size", "500")
    assert np.array_equal(matrix(table), own.array("train_emb.npy"))
    assert own.scores["image_shape"] == [3, 16, 16]


# Streaming


def test_no_more_than_a_few_parts_are_held(photos: Path, monkeypatch: pytest.MonkeyPatch):
    """By construction: what is decoded stays a few batches ahead of what is used, whatever the number of files."""
    looked: list[str] = []
    look = stream.Files.look
    monkeypatch.setattr(stream.Files, "look", lambda self, file: (looked.append(file.name), look(self, file))[1])
    files = stream.files_at(photos, False)
    assert files is not None
    parts = stream.Files(files * 40, 32, 10**8, threads=2).parts(range(1000), 10)
    for used, _ in enumerate(parts, start=1):
        assert len(looked) <= 10 * (used + stream.AHEAD)
        if used == 5:
            parts.close()  # a reader that stops, stops the decoding
    assert len(looked) <= 10 * (5 + stream.AHEAD) and used == 5


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(run: crlf.Run, tmp_path: Path):
    """Measured: 5,000 more images, 15 MB of pixels and 36 MB of embeddings, take less than half of that more."""
    program = (
        "import resource, sys, crlf, crlf.embedding.embed\n"
        "crlf.embed(sys.argv[1], sys.argv[2], out=sys.argv[3], device='cpu', batch_size=100)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n in (1000, 6000):
        images = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.uint8, (n, 32, 32, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
        del images
        words = [sys.executable, "-c", program, str(run.path), str(tmp_path / f"{n}.npy"), str(tmp_path / "t.parquet")]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=alone())
        peaks.append(int(done.stdout.split()[-1]) * 1024)
        for path in tmp_path.glob("t.*"):
            path.unlink()
    assert peaks[1] - peaks[0] < 0.5 * 5000 * (3 * 32 * 32 + 4 * 1792), peaks


def alone() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# Several processes


def torchrun(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, program, *words], text=True, env=alone(), **pipes) as started:
        try:
            out, err = started.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            started.terminate()  # torchrun then ends its ranks; killed, it would leave them
            raise
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


@pytest.mark.long
def test_two_processes_give_the_bits_of_one(run: crlf.Run, photos: Path, tmp_path: Path):
    one = embed(run, photos, tmp_path / "one.parquet", "--batch-size", "4")
    program = tmp_path / "program.py"
    program.write_text("import sys; from crlf.cli import main; sys.exit(main())")
    words = ["embed", str(run.path), str(photos), "--out", str(tmp_path / "two.parquet"), "--device", "cpu"]
    done = torchrun(str(program), *words, "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "two.parquet").equals(one)
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert (tmp_path / "two_skipped.csv").read_text() == (tmp_path / "one_skipped.csv").read_text()
    assert done.stdout.count("23 embeddings") == 1
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 17])
def test_the_shares_of_the_ranks_are_all_there_is(monkeypatch: pytest.MonkeyPatch, world: int, count: int):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    shares = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        assert (distributed.rank(), distributed.world()) == (rank, world)
        shares.append(distributed.part_of(count))
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_started():
    with distributed.together():
        assert not distributed.torch.distributed.is_initialized() and distributed.gather(3) == [3]


# Bad input


def broken_shape(run: crlf.Run, folder: Path) -> Path:
    copy = folder / "old"
    copy.mkdir()
    for name in (RECIPE, ENCODER):
        (copy / name).write_bytes(run.file(name).read_bytes())
    return copy


def test_what_cannot_be_embedded_is_one_line(run: crlf.Run, photos: Path, tmp_path: Path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("hi")
    (tmp_path / "there.npy").write_bytes(b"mine")
    np.save(tmp_path / "small.npy", np.zeros((3, 28, 28), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((3, 32, 32, 3)))
    old = broken_shape(run, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    cases = {
        ("no/where",): "does not exist",
        ("shape",): "Did you mean 'shapes'?",
        (str(tmp_path / "none"),): "none of 1 files is an image; the first is 'a.txt': it is no JPEG",
        (str(tmp_path / "none" / "a.txt"),): "list",
        (str(tmp_path / "there.npy"),): "cannot be read",
        (str(tmp_path / "small.npy"),): "must have 32 × 32 pixels with 3 channels, as in training, not 28 × 28",
        (str(tmp_path / "float.npy"),): "must be uint8",
        (str(photos), "--out", str(tmp_path / "t.csv")): "must end in .parquet",
        (str(photos), "--out", str(tmp_path / "no" / "t.parquet")): "does not exist",
        (str(photos), "--out", str(tmp_path / "there.parquet")): "already exists: --overwrite replaces it",
        (
            str(tmp_path / "small.npy"),
            "--out",
            str(tmp_path / "small.parquet"),
            "--overwrite",
        ): "would replace the images",
        (str(photos), "--batch-size", "0"): "batch_size must be 1 or more, not 0",
        ("--out", str(tmp_path / "t.parquet")): "is for new images",
        (str(photos), "--data-dir", "x", "extra"): "extra",
    }
    for words, expected in cases.items():
        out = [] if "--out" in words else ["--out", str(tmp_path / "t.parquet")]
        assert expected in refused("embed", str(run.path), *words, *out)
    line = refused("embed", str(old), str(photos), "--out", str(tmp_path / "t.parquet"))
    assert "has no image_shape: `crlf embed" in line
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before  # nothing half-written


def test_overwrite_replaces_all_that_is_beside_the_table(run: crlf.Run, photos: Path, tmp_path: Path):
    embed(run, photos, tmp_path / "t.parquet")
    table = embed(run, photos / "00.png", tmp_path / "t.parquet", "--overwrite")
    assert len(table) == len(np.load(tmp_path / "t.npy")) == 1 and not (tmp_path / "t_skipped.csv").exists()


def test_a_stop_leaves_nothing(run: crlf.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    look = stream.Files.part

    def stopped(self: stream.Files, *found: object) -> stream.Part:
        os.kill(os.getpid(), signal.SIGTERM)
        return look(self, *found)  # type: ignore[arg-type]

    monkeypatch.setattr(stream.Files, "part", stopped)
    words = ["embed", str(run.path), str(photos), "--out", str(tmp_path / "t.parquet"), "--device", "cpu"]
    assert cli.main(words) == 143
    assert "stopped: nothing was written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_files_that_come_or_go_between_the_ranks(tmp_path: Path):
    from crlf.embedding.shards import finish

    with pytest.raises(InputError, match="the ranks found 3 and 4 files"):
        finish([], tmp_path / "t.parquet", [(3, []), (4, [])])


def test_images_that_are_not_square_take_no_files():
    with pytest.raises(InputError, match=r"square images of 3 channels, but those of the run have 24 × 32"):
        stream.side_of((3, 24, 32), "files")
