"""Images in an array: a .npy file, which is mapped from the disk where it can be, or an .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from crlf.data.files.decode import square
from crlf.data.image_set import ImageSet
from crlf.data.memmap import Mapped, mode, tensor
from crlf.errors import InputError, first_line
from crlf.runtime.devices import fits

SUFFIXES = (".npy", ".npz")
SHAPES = "uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4"
CHANNELS = (1, 3, 4)


def load(path: Path, image_size: int = 0, subset: int = 0) -> ImageSet:
    """The images in an array, in its order, without labels.

    Args:
        path: a .npy file, or an .npz file of one array, or with one named "images".
        image_size: pixels a side, as for files (`crlf.data.files.decode`); 0 leaves them as they are.
        subset: at most so many, the first ones; 0 for all.

    Returns:
        uint8 (N, 3, H, W): gray three times, and what is transparent on white.

    Raises:
        InputError: it cannot be read, holds Python objects, or is of another shape or dtype.
    """
    mapped = Mapped.of(path) if path.is_file() else None
    array = read(path)
    images = three_channels(array[:subset] if subset and array.ndim else array, path)  # (N, 3, H, W)
    if image_size and images.shape[2:] != (image_size, image_size):
        images = np.stack([square(Image.fromarray(image.transpose(1, 2, 0)), image_size) for image in images])
    ids = tuple(f"{path.name}/{i:05}" for i in range(len(images)))
    return ImageSet(tensor(images), None, (), ids, mapped if np.may_share_memory(images, array) else None)


def read(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # an .npz file is a zip archive
                file.seek(0)
                with np.load(file, allow_pickle=False) as found:
                    name = only(found.files)
                    require_room(found.zip, [name])
                    return found[name]
        return np.load(path, mmap_mode=mode(path.stat().st_size), allow_pickle=False)
    except InputError as error:
        raise InputError(f"array {str(path)!r} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"array {str(path)!r} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # a damaged file raises almost any kind; a pickled one ValueError
        raise InputError(f"array {str(path)!r} cannot be read: {first_line(error)}") from error


def require_room(archive: zipfile.ZipFile, names: Collection[str]) -> None:
    """Raise InputError when these arrays do not fit in memory: a small archive may hold large ones."""
    files = {*names, *(f"{name}.npy" for name in names)}
    size = sum(info.file_size for info in archive.infolist() if info.filename in files)
    if not fits(size, torch.device("cpu")):
        raise InputError(f"what it holds takes {size:,} bytes, more than half of the memory that is left")


def only(names: list[str]) -> str:
    """Which array of an .npz file holds the images."""
    if "images" in names:
        return "images"
    if len(names) != 1:
        listed = ", ".join(names[:5]) or "none"
        raise InputError(f"it must hold one array, or one named 'images', not {len(names)} ({listed})")
    return names[0]


def three_channels(array: np.ndarray, path: Path) -> np.ndarray:
    """Any of `SHAPES` as uint8 (N, 3, H, W), contiguous; (N, 3, H, W) stays where it is."""
    refused = InputError(f"array {str(path)!r} must be {SHAPES}, not {array.dtype} {array.shape}")
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise refused
    if array.shape[1] != 3 and not fits(3 * array.nbytes, torch.device("cpu")):
        rule = "an array that is larger than the memory must be uint8 (N, 3, H, W)"
        raise InputError(f"{rule}, not {array.shape} as in {str(path)!r}")
    if array.ndim == 3:
        array = array[:, None]
    else:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            raise refused
        array = array if first else array.transpose(0, 3, 1, 2)
    if array.shape[1] == 1:
        array = array.repeat(3, axis=1)
    if array.shape[1] == 4:
        array = on_white(array)
    return np.ascontiguousarray(array)


def on_white(array: np.ndarray) -> np.ndarray:
    """uint8 (N, 4, H, W) with opacity last -> (N, 3, H, W)."""
    result = np.empty((len(array), 3, *array.shape[2:]), dtype=np.uint8)
    for place, image in zip(result, array, strict=True):  # one at a time: floats of all would be eight times as large
        colours, opacity = image[:3].astype(np.float32), image[3:].astype(np.float32) / 255
        place[:] = np.rint(colours * opacity + 255 * (1 - opacity))
    return result
