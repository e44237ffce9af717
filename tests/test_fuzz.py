"""Random and damaged input to everything that reads: a result or one clear line; no traceback, no hang, no flood.

2,000 inputs in all; `CRLF_FUZZ=100000 python -m pytest -m long tests/test_fuzz.py` takes more, and other ones each
time. What was found once stands as an `example`.
"""

from __future__ import annotations

import datetime
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from readers import READERS, WHOLE, refused_or

from crlf import cli
from crlf.recipe import RECIPES, Recipe

pytestmark = pytest.mark.long

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


def fuzzed(name: str, *known: bytes) -> Callable[..., None]:
    """The test of one of the readers; what was found in it once is tried first."""
    read, samples = READERS[name]

    def test(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        read(data, tmp_path_factory.getbasetemp())

    for data in known:
        test = example(data=data)(test)
    return fuzz(given(data=damaged(*samples()))(test))


BEYOND = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(118)

test_images = fuzzed("images")
test_cifar_batches = fuzzed("cifar_batches", b"\x80\x02}r\xff\xff\xff\x2f.")  # a memo of 13 GB
test_archives = fuzzed("archives")
test_files_of_a_run = fuzzed("files_of_a_run", b"[" * 100_000, b'{"a":' * 100_000)
test_arrays = fuzzed("arrays", b"\x93NUMPY\x01\x00v\x00" + BEYOND)
test_weights = fuzzed("weights")
test_tables = fuzzed("tables")


def test_with_coverage_as_a_guide(tmp_path):
    """A few thousand inputs of atheris, which keeps those that reach a new branch; see tests/fuzz_readers.py."""
    pytest.importorskip("atheris")
    command = [sys.executable, str(Path(__file__).with_name("fuzz_readers.py")), "all", f"-runs={INPUTS * 9}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]


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


@fuzz
@example({"method": []})
@given(settings_of(WHOLE) | st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_recipes(values: dict):
    made = refused_or(lambda: Recipe.from_dict(values))
    assert isinstance(made, str) or Recipe.from_dict(made.to_dict()) == made


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
        code = cli.command_line(stage, words, "stage")
    assert code in (0, 2)
    assert code == 0 or (said.getvalue().startswith("stage: error: ") and said.getvalue().count("\n") == 1), (
        said.getvalue()
    )


def test_every_target_is_counted():
    assert sum(name.startswith("test_") for name in globals()) - 2 == TARGETS == len(READERS) + 2
