"""Random and damaged input to everything that reads: a result or one clear line; no traceback, no hang, no flood.

2,000 inputs in all; `CRLF_FUZZ=100000 python -m pytest tests/test_fuzz.py` takes more, and other ones each time. What
was found once stands as an `example`.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import resource
import sys
import tarfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_cifar
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import crlf
from crlf import cli, runs, sealed
from crlf.data import archives, pickles, shards
from crlf.data.decode import decode
from crlf.errors import InputError
from crlf.recipe import RECIPES, Recipe

TARGETS = 9
INPUTS = int(os.environ.get("CRLF_FUZZ", 2000)) // TARGETS
FLOOD = 1_500_000_000  # bytes by which the process may grow
fuzz = settings(
    max_examples=INPUTS,
    deadline=datetime.timedelta(seconds=10),
    derandomize="CRLF_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def no_flood():
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < FLOOD


def damaged(*samples: bytes) -> st.SearchStrategy[bytes]:
    """One of these with some bytes changed, put in, or cut off; or anything."""

    def spoil(whole: bytes, edits: list[tuple[float, int, bool]], cut: float) -> bytes:
        data = bytearray(whole)
        for place, value, put in edits:
            at = int(place * (len(data) - 1)) if data else 0
            data[at : at + (not put)] = bytes([value])
        return bytes(data[: max(0, int(cut * len(data)))])

    share = st.floats(0, 1)
    edits = st.lists(st.tuples(share, st.integers(0, 255), st.booleans()), max_size=6)
    cut = st.just(1.0) | share
    return st.builds(spoil, st.sampled_from(samples), edits, cut) | st.binary(max_size=300)


def refused_or(act: Callable[[], object]) -> object:
    """What it returns, or the one line that it refuses with."""
    try:
        return act()
    except InputError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 1000, line
        return line


def pictures() -> list[bytes]:
    found = []
    gradient = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3) % 251
    for kind, mode in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("WEBP", "RGBA"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(gradient.astype(np.uint8)).convert(mode).save(buffer, kind)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray((gradient[:, :, 0] * 200).astype(np.uint16)).save(buffer, "TIFF", compression="tiff_lzw")
    return [*found, buffer.getvalue()]


@fuzz
@given(damaged(*pictures()))
def test_images(data: bytes):
    made = refused_or(lambda: decode(data, 16, max_pixels=1_000_000))
    assert isinstance(made, str) or (made.shape == (3, 16, 16) and made.dtype == np.uint8)


def cifar_batches() -> list[bytes]:
    return [tiny_cifar.python2_pickle(*pair) for pair in list(tiny_cifar.batches().values())[:2]]


@fuzz
@given(damaged(*cifar_batches()))
def test_cifar_batches(data: bytes):
    made = refused_or(lambda: pickles.batches([("data_batch_1", data)], label_key="labels"))
    if not isinstance(made, str):
        images, labels = made
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 32, 32) and len(images) == len(labels)


def tarballs() -> list[bytes]:
    found = []
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, data in (("a/b.bin", b"content"), ("../out", b"no")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found.append(buffer.getvalue())
    return found


@fuzz
@given(data=damaged(*tarballs()))
def test_archives(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    path.write_bytes(data)
    made = refused_or(lambda: archives.members(path, {"a/b.bin"}, 10_000))
    assert isinstance(made, str) or set(made) <= {"a/b.bin"}
    assert not (path.parent.parent / "out").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def settings_of(recipe: dict) -> st.SearchStrategy[dict]:
    """A recipe's settings, some of them with another value."""
    names = st.sampled_from(sorted(recipe))

    def changed(changes: list[tuple[str, object]]) -> dict:
        return recipe | dict(changes)

    section = st.sampled_from(sorted(name for name, value in recipe.items() if isinstance(value, dict)))
    within = st.builds(
        lambda name, key, value: (name, recipe[name] | {sorted(recipe[name])[key % len(recipe[name])]: value}),
        section, st.integers(0, 99), JSON,
    )  # fmt: skip
    return st.builds(changed, st.lists(st.tuples(names, JSON) | within, max_size=3))


WHOLE = RECIPES["default"].to_dict()


@fuzz
@example({"method": []})
@given(settings_of(WHOLE) | st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_recipes(values: dict):
    made = refused_or(lambda: Recipe.from_dict(values))
    assert isinstance(made, str) or Recipe.from_dict(made.to_dict()) == made


TEXTS = (
    json.dumps(WHOLE).encode(),
    b'{"linear_accuracy": 0.8, "protocol": {"linear": "x"}}\n',
    b'{"step": 1, "loss": NaN}\n' * 3,
)


@fuzz
@given(data=damaged(*TEXTS))
def test_files_of_a_run(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    run = crlf.Run(tmp_path_factory.getbasetemp() / "fuzzed run")
    run.path.mkdir(exist_ok=True)
    for name in (runs.RECIPE, runs.SCORES, runs.LOG, runs.CLASSES):
        run.file(name).write_bytes(data)
    for act in (lambda: run.recipe, lambda: run.scores):
        assert isinstance(refused_or(act), str | dict)
    assert all(isinstance(row, dict) for row in run.log())
    assert isinstance(refused_or(lambda: run.classes), str | list)
    refused_or(lambda: runs.finite(run.scores))


def arrays() -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12.0).reshape(3, 4))
    return [buffer.getvalue()]


@fuzz
@given(data=damaged(*arrays()))
@example(
    data=b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(118)
)
def test_arrays(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    run = crlf.Run(tmp_path_factory.getbasetemp())
    run.file("fuzzed.npy").write_bytes(data)
    assert isinstance(refused_or(lambda: run.array("fuzzed.npy")), str | np.ndarray)


def weights() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(8.0), "step": 3}, buffer)
    return [sealed.seal(buffer.getvalue()), buffer.getvalue()]


@fuzz
@given(data=damaged(*weights()))
def test_weights(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    run = crlf.Run(tmp_path_factory.getbasetemp())
    run.file(runs.CHECKPOINT).write_bytes(data)
    refused_or(lambda: run.tensors(runs.CHECKPOINT))


def tables() -> list[bytes]:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"abc", b"def"], "label": [0, 1]}), buffer)
    return [buffer.getvalue()]


@fuzz
@given(data=damaged(*tables()))
def test_tables(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    path.write_bytes(data)
    refused_or(lambda: shards.look_at(path))


def stage(recipe: Recipe = RECIPES["default"], *, out: str = "x", resume: bool = False) -> None:
    """What stands for pretrain."""


FLAGS = (
    "--epochs",
    "--batch-size",
    "--method",
    "--encoder",
    "--lr",
    "--out",
    "--mean",
    "--recipe",
    "--resume",
    "--data",
)
WORDS = st.sampled_from(FLAGS) | st.text(max_size=10) | st.integers().map(str) | st.floats().map(str) | st.just("byol")


@fuzz
@given(st.lists(WORDS, max_size=6))
def test_command_lines(words: list[str]):
    heard, said = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", heard)
        patch.setattr(sys, "stderr", said)
        try:
            code = cli.command_line(stage, words, "stage")
        except SystemExit as end:  # --help
            code = end.code or 0
    assert code in (0, 2)
    assert code == 0 or (said.getvalue().startswith("stage: error: ") and said.getvalue().count("\n") == 1), (
        said.getvalue()
    )


def test_every_target_is_counted():
    assert sum(name.startswith("test_") for name in globals()) - 1 == TARGETS
