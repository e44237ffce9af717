"""The one exception for what a user can mend. Only the command line prints it; exit code 2."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong flag, file or image: one line that names the thing, the rule and the value."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that no table holds.

    Args:
        kind: what the name should have been, such as "encoder".
        name: what was given.
        choices: the known names.

    Returns:
        An `InputError` that lists the choices and offers the nearest one.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{kind} {name!r} is not known: choose from {', '.join(known)}.{hint}")


def first_line(error: Exception) -> str:
    """What an error says, in one line short enough for a message or a cell of a table; its kind if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def require(what: str, extra: str, *modules: str) -> None:
    """Raise InputError, with the command that mends it, when a library of an extra is not installed.

    Args:
        what: needs them, such as "--format onnx".
        extra: of pyproject.toml, which brings them.
        modules: as they are imported.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'crlf[{extra}]'")
