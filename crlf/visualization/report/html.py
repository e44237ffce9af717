"""Makes HTML from the templates; all values are escaped."""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crlf.runs.run import Run
from crlf.text import percent

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "svhn": "SVHN"}  # as their authors say


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in the table of contents."""

    title: str
    html: Markup
    name: str


@cache
def templates() -> Environment:
    """The contents of a file in the folder templates."""
    found = Environment(
        loader=PackageLoader("crlf.visualization.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=unbroken,
    )  # fmt: skip
    found.filters["percent"] = percent
    found.filters["parts"] = parts
    return found


def unbroken(value: Any) -> Any:
    """No line ends between a number and its per cent sign; what is HTML already stays as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else re.sub(r"(?<=\d) %", "\u00a0%", value)


def render(template: str, **values: Any) -> Markup:
    return Markup(templates().get_template(template).render(values))


def section(title: str, template: str, name: str = "", **values: Any) -> Section:
    """A section of a template and its values."""
    return Section(title, render(template, **values), name or title.lower().replace(" ", "-"))


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def parts(text: str) -> list[str]:
    """Allow a narrow screen to break a name at its joints, but not inside a word."""
    return re.split(r"(?<=[-_./\\])(?=\w)", text)


def plain(value: Any) -> str:
    """A value of a JSON file, formatted for reading."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(item)}" for key, item in value.items())
    return str(value)


def plural(count: Any, noun: str) -> str:
    return f"{plain(count)} {noun}{'' if count == 1 else 's'}"


def quoted(run: Run) -> str:
    return shlex.quote(str(run.path))
