"""Finds the images of ids, to show them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crlf.data import SOURCES, load
from crlf.data.files.arrays import SUFFIXES, read, three_channels
from crlf.data.files.decode import PILLOW
from crlf.data.files.decode_cache import look_into
from crlf.data.files.folder import LIST
from crlf.data.files.listing import look_at
from crlf.data.image_set import ImageSet
from crlf.errors import InputError

SIDE = 128  # pixels


def pictures(source: str, ids: Sequence[str], data_dir: str | Path | None = None) -> Mapping[str, np.ndarray]:
    """The images of these ids that can be found, uint8 (H, W, 3) each; images from files are resized and cropped.

    Args:
        source: a name of `SOURCES`, or the path of a folder, a list, an array or an image.
        ids: the ids that `crlf embed` wrote.
        data_dir: the folder of the named data sets.
    """
    path = Path(source)
    try:
        if source in SOURCES:
            found = of_sets(load(source, data_dir), ids)
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            found = of_array(path, ids)
        else:
            found = {name: of_file(path_of(path, name)) for name in ids}
    except InputError:  # the source is missing or has changed
        return {}
    return {name: image.transpose(1, 2, 0) for name, image in found.items() if image is not None}


def of_sets(sets: tuple[ImageSet, ImageSet], ids: Sequence[str]) -> dict[str, np.ndarray | None]:
    wanted = set(ids)
    return {name: part.images[row].numpy() for part in sets for row, name in enumerate(part.ids) if name in wanted}


def of_array(path: Path, ids: Sequence[str]) -> dict[str, np.ndarray | None]:
    array, found = read(path), {}
    for name in ids:
        row = int(name.rpartition("/")[2]) if name.rpartition("/")[2].isdecimal() else len(array)
        found[name] = three_channels(array[row : row + 1], path)[0] if row < len(array) else None
    return found


def path_of(source: Path, name: str) -> str:
    """The file of an id: relative to the folder, or to that of a list; or the source itself if it is an image."""
    if source.is_dir():
        return os.path.join(source, name)
    return os.path.join(source.parent, name) if source.suffix.lower() == LIST else str(source)


def of_file(path: str) -> np.ndarray | None:
    """The image in a file: uint8 (3, SIDE, SIDE); None if there is none."""
    return look_into(look_at(path, path), SIDE, PILLOW)[0]
