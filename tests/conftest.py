"""What the tests share."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sizes are tiny, and more threads only wait

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crlf import data, encoders
from crlf.encoders import CNN
from crlf.errors import InputError

MARKERS = {"long": "minutes", "system": "longer, or much to install"}  # of what is left out by default
LEFT_OUT = pytest.StashKey[dict[str, int]]()
SENT = "left_out"  # what a worker of pytest-xdist sends it as
CACHE = data.cache_dir()  # before any test points CRLF_CACHE elsewhere


def pytest_configure() -> None:
    """Collecting makes millions of objects that live to the end: looking among them for garbage takes a third of it."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what was left out, by its marker."""
    for item in items:
        for marker in MARKERS:
            if item.get_closest_marker(marker):
                left_out = item.config.stash.setdefault(LEFT_OUT, {})
                left_out[marker] = left_out.get(marker, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells its controller, which collects nothing itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[SENT] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker left out the same; one that was killed says nothing."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get(SENT) or node.config.stash.get(LEFT_OUT, {})


def pytest_unconfigure(config: pytest.Config) -> None:
    """Name it in the last line."""
    left_out = config.stash.get(LEFT_OUT, {})
    if left_out and (reporter := config.pluginmanager.get_plugin("terminalreporter")):
        each = [f"{count} {marker} ({MARKERS[marker]}): -m {marker}" for marker, count in left_out.items()]
        reporter.write_line(f"left out: {'; '.join(each)}")


@pytest.fixture(scope="session")
def cifar10() -> tuple[data.ImageSet, data.ImageSet]:
    """Real CIFAR-10 (train, test) from the cache; fetched only where CRLF_TEST_DOWNLOAD=1 asks for it."""
    try:
        return data.load("cifar10", None if os.environ.get("CRLF_TEST_DOWNLOAD") == "1" else CACHE)
    except InputError as error:
        pytest.skip(f"CIFAR-10 is not in the cache (CRLF_TEST_DOWNLOAD=1 fetches it): {error}")


@pytest.fixture(scope="session")
def few_weights() -> Callable[..., CNN]:
    """What stands for the light CNN where it is only in the way: it trains in no time."""
    return lambda channels, size, regions: CNN(channels, regions, widths=(4, 8, 8), read=2)


@pytest.fixture
def narrow(few_weights: Callable[..., CNN], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `encoder="cnn"` be one of a few weights."""
    monkeypatch.setitem(encoders.ENCODERS, "cnn", few_weights)


@pytest.fixture(scope="module")
def all_narrow(few_weights: Callable[..., CNN]) -> Iterator[None]:
    """The same for a whole module, and for the runs that its tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "cnn", few_weights)
        yield


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, filled by two threads."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CRLF_CACHE", str(folder))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return folder
