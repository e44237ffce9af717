"""Help texts from docstrings: of a function's arguments and of a class's attributes."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Any


def paragraph(thing: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """The texts under "Args:" in a function's docstring, by argument."""
    lines = inspect.getdoc(function) or ""
    args = re.search(r"^Args:\n((?:(?: +.*)?\n)+)", f"{lines}\n", flags=re.MULTILINE)
    entries = re.findall(r"^    \*?(\w+): (.*(?:\n {5,}.*)*)", args[1] if args else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def attribute_texts(settings: type) -> dict[str, str]:
    """The docstrings below the attributes of a class, by attribute; empty if the source is not available."""
    with contextlib.suppress(OSError):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        return {
            field.target.id: " ".join(doc.value.value.split())
            for field, doc in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
        }
    return {}
