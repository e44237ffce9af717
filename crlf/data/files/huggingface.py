"""Data sets of the Hugging Face hub, or folders saved by its library, by name: hf:NAME or hf:NAME:CONFIG.

The library `datasets` fetches them and keeps them in Arrow files, which are read as any table of images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from crlf.errors import InputError, first_line

PREFIX = "hf:"


def named(data: str) -> str:
    """The same name; a folder gets its absolute path, since a run may be used from other folders.

    Raises:
        InputError: nothing is named.
    """
    name, colon, config = data.removeprefix(PREFIX).partition(":")
    if not name or (colon and not config):
        raise InputError(f"data {data!r} must be hf:NAME or hf:NAME:CONFIG")
    local = os.path.expanduser(name)
    return PREFIX + (os.path.abspath(local) if os.path.exists(local) else name) + colon + config


def splits(data: str) -> dict[str, list[Path]]:
    """The Arrow files of each split, downloaded if needed.

    Raises:
        InputError: `datasets` is not installed, or cannot load this.
    """
    name, _, config = data.removeprefix(PREFIX).partition(":")
    library = datasets()
    try:
        loaded = library.load_dataset(name, config or None, keep_in_memory=False)
    except Exception as error:  # the network, the hub and the files raise many kinds of exceptions
        raise InputError(f"data {data!r} cannot be loaded: {first_line(error)}") from error
    found = {str(split): [Path(file["filename"]) for file in part.cache_files] for split, part in loaded.items()}
    if not any(found.values()):
        raise InputError(f"data {data!r} has no images: its splits are {', '.join(found) or 'none'}")
    return {split: paths for split, paths in found.items() if paths}


def datasets() -> Any:
    """The module datasets.

    Raises:
        InputError: it is not installed.
    """
    try:
        import datasets as module  # slow to import, and an extra
    except ModuleNotFoundError as error:
        raise InputError("hf: data sets need the datasets library: pip install 'crlf[hf]'") from error
    return module
