"""The site of the docs: built strictly, without a network, and complete."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from declared import project
from environments import cut_off, lent, said
from planted import copy_of_the_checkout

from crlf.cli import COMMANDS

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, made in an environment of its own. --strict: a warning, such as a broken link, is an error."""
    folder = tmp_path_factory.mktemp("site")
    checkout = copy_of_the_checkout(folder)
    python = str(lent(folder / "venv"))
    if not importlib.util.find_spec("material"):
        said([python, "-m", "pip", "install", "--quiet", *project()["optional-dependencies"]["docs"]], folder)
    cut_off(folder / "venv")
    said([python, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "pages")], checkout)
    return folder / "pages"


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_it_has_every_command_setting_and_public_name(site: Path):
    commands = re.sub("<a .*?</a>", "", page(site, "reference/command-line"))
    assert all(f"crlf {name}</h2>" in commands for name in COMMANDS)
    assert "--weight-decay" in page(site, "reference/settings") and "--margin" not in page(site, "reference/settings")
    assert 'id="crlf.inference.sklearn.ContrastiveEncoder"' in page(site, "reference/python")
    assert "A number in the README" in page(site, "contributing") and "Keep a Changelog" in page(site, "changelog")


def test_it_opens_offline(site: Path):
    """No page loads anything from elsewhere."""
    loads = re.compile(r"<(script|img|iframe|source)[^>]* src(set)?=.?(https?:)?//|<link[^>]*(stylesheet|icon)[^>]*//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert not [path for path in pages if loads.search(path.read_text(encoding="utf-8"))]
