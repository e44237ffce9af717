"""Pieces of HTML; whatever is put into them is escaped."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable
from html import escape
from typing import Any

from crlf.runs.run import Run

NAMES = {
    "linear_accuracy": "Linear probe",
    "knn_accuracy": "Nearest neighbours (kNN)",
    "chance": "Chance: always the most frequent class",
}
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "svhn": "SVHN"}  # as their authors say


def section(title: str, html: str, name: str = "") -> str:
    """A section that the contents can point to; nothing where it would be empty."""
    name = name or title.lower().replace(" ", "-")
    return f'\n<section id="{name}">\n<h2>{escape(title)}</h2>\n{html}\n</section>' if html else ""


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of a name, a text, and perhaps a remark."""
    lines = ""
    for name, text, *remarks in rows:
        below = "".join(f"<div class=soft>{escape(remark)}</div>" for remark in remarks if remark)
        lines += f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}{below}</td></tr>\n"
    return f"<table>\n{lines}</table>\n" if lines else ""


def shell(commands: str) -> str:
    return f"<pre><code>{escape(commands)}</code></pre>\n"


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def called(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def plain(value: Any) -> str:
    """A value of a JSON file as a reader writes it."""
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
