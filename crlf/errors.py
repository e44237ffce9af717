"""The exception for errors that the user can fix. Only the command line prints it, with exit code 2."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong flag, file or image. The message is one line that names the thing, the rule and the value."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for an unknown name.

    Args:
        kind: what the name should have been, such as "encoder".
        name: what was given.
        choices: the known names.

    Returns:
        An `InputError` that lists the choices and suggests the nearest one.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{kind} {name!r} is not known: choose from {', '.join(known)}.{hint}")


def first_line(error: Exception) -> str:
    """The message of an error on one line, cut to 200 characters; its type if it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def require(what: str, extra: str, *modules: str) -> None:
    """Raise InputError with the install command if a library of an extra is missing.

    Args:
        what: what needs the libraries, such as "--format onnx".
        extra: the extra in pyproject.toml that installs them.
        modules: the modules to import.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'crlf[{extra}]'")
