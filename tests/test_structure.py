"""The floors of the house: a module imports only lower ones, and every public thing is described."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "crlf"
FLOORS = {
    "errors": 0,
    "words": 0,
    **dict.fromkeys(("docstrings", "stand_ins", "terminal"), 0),
    "flags": 17,
    "findings": 0,
    "thumbnails": 0,
    "course": 0,
    "sealed": 0,
    "checkpoints": 2,
    **dict.fromkeys(("dist", "randomness", "devices", "interrupts", "runs", "views", "encoders", "optim"), 1),
    **dict.fromkeys(("batches", "data", "parquet", "tracking"), 2),
    **dict.fromkeys(("progress", "sharding"), 3),
    "methods.base": 2,
    "frozen_norms": 3,
    "joint": 2,
    "gradients": 4,
    "compiled": 3,
    **{f"methods.{name}": 3 for name in ("simclr", "dcl", "mocov2", "mocov3", "byol", "simsiam")},
    **{f"methods.{name}": 3 for name in ("barlow", "vicreg", "nnclr", "swav", "dino", "supcon")},
    "methods": 4,
    "recipe": 5,
    "estimate": 6,
    "health": 6,
    "evaluation": 7,
    "training": 8,
    "embeddings": 7,
    "corruptions": 1,
    "intervals": 1,
    "logistic": 1,
    "knn": 1,
    "probes.inputs": 9,
    **{f"probes.{name}": 10 for name in ("confidence", "neighbours", "clusters", "few_labels", "with_encoder")},
    "probes.baselines": 11,
    "probes.fine_tuning": 11,
    "probes": 12,
    "compare": 2,
    "checks.case": 13,
    **{f"checks.{name}": 14 for name in ("training", "images")},
    "checks.settings": 15,
    "checks": 16,
    "doctor": 17,
    "figures.style": 8,
    "figures.inputs": 8,
    "figures.maps": 9,
    **dict.fromkeys(("figures.training", "figures.confusion", "figures.network"), 9),
    "figures.embedding": 10,
    "figures": 11,
    "report.html": 12,
    "report.listing": 13,
    "report.pictures": 13,
    "report.plots": 14,
    **dict.fromkeys(("report.verdict", "report.confusion", "report.gallery"), 14),
    "report.curves": 15,
    "report.page": 16,
    "report": 17,
    "summary": 17,
    "loading": 8,
    "estimator": 9,
    "gallery": 12,
    "neighbours": 13,
    "formats": 9,
    "explore": 9,
    "card": 10,
    "export": 11,
    "hub": 12,
    "labelled": 7,
    "classifier": 9,
    "finetuning": 10,
    "classifying": 13,
    "cli": 18,
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor(name: str) -> int:
    return FLOORS["data"] if name.split(".")[0] == "data" else FLOORS[name]


def imports(path: Path) -> set[str]:
    """The modules of crlf that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {
                d if (PACKAGE.parent / Path(*d.split("."))).with_suffix(".py").exists() else node.module for d in deeper
            }
            found |= {d for d in deeper if (PACKAGE.parent / Path(*d.split(".")) / "__init__.py").exists()}
    return {name.removeprefix("crlf.") for name in found if name.startswith("crlf.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path):
    own = name_of(path)
    for other in imports(path):
        within_data = own.split(".")[0] == other.split(".")[0] == "data"
        assert within_data or floor(other) < floor(own), (
            f"{own} (floor {floor(own)}) imports {other} (floor {floor(other)})"
        )


def test_no_cycles_within_data():
    files = {name_of(path): path for path in MODULES if name_of(path).split(".")[0] == "data"}
    graph = {
        name: {other for other in imports(path) if other in files and other != name} for name, path in files.items()
    }
    done: set[str] = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done | {"data"} - {name}}:
        done |= ready
    assert done == set(graph), f"a cycle among {set(graph) - done}"


def test_the_floors_name_every_module():
    names = {name_of(path) for path in MODULES}
    assert {name for name in names if name.split(".")[0] != "data"} <= set(FLOORS)
    assert set(FLOORS) <= names, "a floor for a module that is gone"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_things_have_docstrings(path: Path):
    module = importlib.import_module(f"crlf.{name_of(path)}")
    assert module.__doc__
    for name, thing in vars(module).items():
        if inspect.isclass(thing) and not name.startswith("_") and thing.__module__ == module.__name__:
            assert thing.__doc__, f"{module.__name__}.{name}"
