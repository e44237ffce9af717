"""The order of the house: a package imports only those above it in one list, and every public thing is described."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "crlf"
ORDER = (
    *("errors", "text", "runtime"),
    *("defaults", "normalisation", "augmentation", "encoders", "optim", "methods"),
    *("data", "metrics", "recipe", "runs", "training"),
    *("embedding", "evaluation", "visualization", "inference", "exporters", "pipelines", "cli"),
)  # each imports only what stands before it
ONE_MEANING = {
    "knn.py": "k nearest neighbours: metrics finds them, evaluation is the probe",
    "curves.py": "the curves of a training: figures draws them, the report shows them by Bokeh",
    "shards.py": "a shard is one of the files of a table: of one's own, and of one that is embedded on several ranks",
}  # names of files that stand for one thing in two packages
ROOMS, FLOORS = 21, 9  # at most


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


DOORS = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")  # the first names all others, the second is the command
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in DOORS]
MODULES = {name_of(path): path for path in FILES}


def room(module: str) -> str:
    """What it lies in directly under crlf."""
    return module.split(".")[1]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of crlf that a file imports anywhere, in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name if name in MODULES else name.rpartition(".")[0] for name in found}
    assert "crlf" not in known, f"{module} imports the whole of crlf, which imports everything"
    return frozenset(known & set(MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str):
    for other in imports(module):
        assert ORDER.index(room(other)) <= ORDER.index(room(module)), f"{module} imports {other}"


def test_no_cycles():
    graph = {module: imports(module) for module in MODULES}
    done: set[str] = set()
    while ready := {module for module, needs in graph.items() if module not in done and needs <= done}:
        done |= ready
    assert done == set(graph), f"a cycle among {sorted(set(graph) - done)}"


def test_the_order_names_every_room_and_there_are_few():
    assert {room(module) for module in MODULES} == set(ORDER) and len(ORDER) <= ROOMS


def test_the_house_is_not_high():
    floors: dict[str, int] = {}
    for own in ORDER:  # in which all that a room imports comes before it
        below = {room(other) for module in MODULES if room(module) == own for other in imports(module)}
        floors[own] = 1 + max((floors[other] for other in below - {own}), default=0)
    assert max(floors.values()) <= FLOORS, floors


def test_no_name_of_a_file_means_two_things():
    count = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert {name for name, times in count.items() if times > 1} == set(ONE_MEANING)


def test_nothing_is_two_things():
    """A name of `crlf` is a function or class, or a package: never both, whatever was imported before."""
    crlf = importlib.import_module("crlf")
    assert not set(crlf.__all__) & set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_public_things_have_docstrings(module: str):
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name, thing in vars(loaded).items():
        if inspect.isclass(thing) and not name.startswith("_") and thing.__module__ == loaded.__name__:
            assert thing.__doc__, f"{loaded.__name__}.{name}"
