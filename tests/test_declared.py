"""What the package imports is declared, and what it declares is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import runpy
import sys
from pathlib import Path

import pytest
from declared import ROOT, TOOLS, declared, lowest, project

import crlf

NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "umap": "umap-learn"}  # of an import and of its package
WITHOUT_IMPORT = {
    "onnx": "torch.onnx needs it",
    "onnxscript": "torch.onnx needs it",
    "embedding-atlas": "a program that `crlf explore` starts",
    "tensorboard": "torch.utils.tensorboard needs it",
    "s3fs": "fsspec needs it for s3://",
    "gcsfs": "fsspec needs it for gs://",
}


def imported(folder: Path) -> dict[str, set[str]]:
    """The packages that the files of a folder import: at the top, and inside a function or a condition."""
    found: dict[str, set[str]] = {"top": set(), "inside": set()}
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"crlf"}
            found["top" if node in tree.body else "inside"] |= {NAMES.get(name, dashed(name)) for name in tops}
    return found


def test_all_that_is_imported_is_declared():
    found = imported(ROOT / "crlf")
    needed, all_extras = names(), names(*project()["optional-dependencies"])
    assert found["top"] <= needed, "imported by every run, but only an extra, or nothing, declares it"
    assert found["inside"] <= all_extras


def test_all_that_is_declared_is_imported():
    found = imported(ROOT / "crlf")
    users = [name for name in project()["optional-dependencies"] if name not in ("test", *TOOLS)]
    assert names(*users) - found["top"] - found["inside"] == set(WITHOUT_IMPORT)


def names(*extras: str) -> set[str]:
    return {dashed(need.name) for need in declared(*extras)}


def dashed(name: str) -> str:
    return name.replace("_", "-")


def test_every_lowest_version_is_below_what_is_here():
    """Else nobody who tests this checkout tests what it declares."""
    for name, version in lowest().items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert parts(version) <= parts(here), f"{name} {here} is installed, but {version} or later is declared"


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def test_the_package_says_what_it_is():
    told = project()
    assert told["authors"] == [{"name": "the CRLF maintainers"}]
    versions = [f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)]
    assert set(versions) <= set(told["classifiers"]) and told["requires-python"] == ">=3.10"
    assert told["keywords"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[a](docs/a.md)", "[a](https://r/blob/main/docs/a.md)"),
        ("![a, b](docs/a.png)", "![a, b](https://r/raw/main/docs/a.png)"),
        ('<img src="docs/a.png">', '<img src="https://r/raw/main/docs/a.png">'),
        ("[![a](a.png)](a.md)", "[![a](https://r/raw/main/a.png)](https://r/blob/main/a.md)"),
        ("[a](#results)", "[a](#results)"),
        ("[a](mailto:a)", "[a](mailto:a)"),
    ],
)
def test_the_links_of_the_readme_are_found_from_the_index(before: str, after: str):
    setup = runpy.run_path(str(ROOT / "setup.py"))
    assert setup["absolute"](before, "https://r") == after and setup["absolute"](before, "") == before


@pytest.mark.parametrize("name", sorted({*crlf.__all__} - {"__version__", "RECIPES"}))
def test_every_public_name_has_its_place_in_the_reference(name: str):
    assert f"\n::: crlf.{name}\n" in (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
