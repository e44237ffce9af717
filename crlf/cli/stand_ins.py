"""What stands in for torch and other libraries while a command's help is written.

Help needs names, types, defaults and docstrings, all of which are CRLF's own; to import torch alone takes longer than
to write it. So each library is a module whose every name is an empty class, as Sphinx mocks imports. Nothing is
computed with these: only a process that prints help and ends uses them.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any


class StandIn(ABCMeta):
    """The type of an empty class: its attributes are such classes, and as a decorator it leaves a function as it is."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        return arguments[0] if arguments and isinstance(arguments[0], FunctionType) else stand_in(cls.__name__)


def stand_in(name: str) -> StandIn:
    return StandIn(name, (), {})


class StandInModule(ModuleType):
    """A library, or a module of one, that was not imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class Finder(MetaPathFinder, Loader):
    """Finds a stand-in for all that is neither Python's nor CRLF's own."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        library = name.partition(".")[0]
        there = sys.modules.get(library)
        own = library == "crlf" or library in sys.stdlib_module_names
        if own or (there is not None and not isinstance(there, StandInModule)):
            return None  # numpy is there already
        return ModuleSpec(name, self, is_package=True)  # it may have modules of its own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Import no library from now on, in this process, which must end after it has printed help."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, Finder())
