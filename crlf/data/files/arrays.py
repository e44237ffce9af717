"""Reads images from an array: a .npy file, which is mapped from the disk if possible, or an .npz file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from crlf.data.files.class_folders import hold_out, lacking, reasons, share_of
from crlf.data.files.decode import square
from crlf.data.image_set import ImageSet
from crlf.data.memmap import Mapped, mode, tensor
from crlf.errors import InputError, first_line
from crlf.runtime.devices import fits
from crlf.text import say

SUFFIXES = (".npy", ".npz")
SHAPES = "uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4"
CHANNELS = (1, 3, 4)
LABELS = "labels"  # the array of an .npz file


def load(
    path: Path, image_size: int = 0, subset: int = 0, labelled: bool = True, hold_out: float = -1.0
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Load the training images, the test images and the images to learn from of an array, in its order.

    An .npz file may hold "labels", integers or strings (N,), beside "images". Then a share of each class is the test
    set, or the test set is the training set, and both alternate between classes. Images without a label (-1, NaN or an
    empty string) are also used for training and come last. Without labels, all images are for training.

    Args:
        path: a .npy file, or an .npz file with a single array or one named "images".
        image_size: resize to this many pixels per side (`crlf.data.files.decode`); 0 keeps the size.
        subset: at most this many images, the first ones; 0 for all.
        labelled: whether to use labels.
        hold_out: the share to hold out (crlf.data.files.class_folders.share_of).

    Returns:
        Three sets of images uint8 (N, 3, H, W); gray is repeated in all channels, transparency becomes white.

    Raises:
        InputError: the file cannot be read, holds Python objects, or has the wrong shape or dtype.
    """
    mapped = Mapped.of(path) if path.is_file() else None
    array, labels = read_all(path)
    array = array[:subset] if subset and array.ndim else array
    images = three_channels(array, path)  # (N, 3, H, W)
    if image_size and images.shape[2:] != (image_size, image_size):
        images = np.stack([square(Image.fromarray(image.transpose(1, 2, 0)), image_size) for image in images])
    ids = tuple(f"{path.name}/{i:05}" for i in range(len(images)))
    whole = ImageSet(tensor(images), None, (), ids, mapped if np.may_share_memory(images, array) else None)
    nothing = part(whole, [], None, [])
    if labels is None or not labelled:
        return whole, nothing, whole
    places, classes, why = usable(labels, len(images), bool(subset))
    if why:
        say(f"array {LABELS!r} of {str(path)!r} is not used: {why}")
        return replace(whole, why=f"array {LABELS!r} is not used: {why}"), nothing, whole
    known = [row for row, place in enumerate(places) if place >= 0]
    if len(known) == len(places):
        train, test = split(whole, places, classes, share_of(hold_out, len(known)))
        return train, test, train
    say(f"{len(places) - len(known):,} of {len(places):,} labels are missing: these images are used for training only")
    own = part(whole, known, None, [])
    train, test = split(own, [places[row] for row in known], classes, share_of(hold_out, len(known)))
    rest = [row for row, place in enumerate(places) if place < 0]
    row_of = {name: row for row, name in enumerate(ids)}
    learn = part(whole, [*(row_of[name] for name in train.ids), *rest], None, [])
    return (train if train.labels is not None else replace(learn, why=train.why)), test, learn


def usable(labels: np.ndarray, count: int, cut: bool) -> tuple[list[int], list[str], str]:
    """Labels as indices of classes (-1 if missing), the classes, and why labels cannot be used, or ""."""
    if labels.ndim != 1 or (len(labels) < count if cut else len(labels) != count):
        return [], [], f"it must be ({count},), not {labels.shape}"
    if labels.dtype.kind == "f":
        numbers = np.where(np.isnan(labels), -1, labels)
        if np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all():
            labels = numbers.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        return [], [], f"it must hold whole numbers or texts, not {labels.dtype}"
    values = labels[:count].tolist()
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    classes = sorted({text for text in texts if text not in (-1, "")})
    if len(classes) < 2:
        return [], [], "they are all the same" if classes else "all are missing"
    places = {name: place for place, name in enumerate(classes)}
    return [places.get(text, -1) for text in texts], [str(name) for name in classes], ""


def split(whole: ImageSet, labels: list[int], classes: list[str], share: float) -> tuple[ImageSet, ImageSet]:
    """Split a set into a labelled training set and the held-out images; the same set twice if none is held out."""
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in whole.images]
    rows, held = hold_out(labels, digests, share)
    odd = lacking(labels, digests, share)
    if len(set(labels)) - len(odd) < 2:
        why = reasons({classes[label]: what for label, what in odd.items()})
        say(f"too few images per class to test on ({why}): all are used for training, without labels")
        return replace(whole, why=f"of the classes {why}"), part(whole, [], None, [])
    rest = f"{len(held):,} images are held out" if held else "no images are held out"
    say(f"labels of {len(classes):,} classes, which pretraining never sees; {rest}")
    train = replace(part(whole, rows, labels, classes), hold_out=share)
    return train, replace(part(whole, held, labels, classes), hold_out=share) if held else train


def part(whole: ImageSet, rows: list[int], labels: list[int] | None, classes: list[str]) -> ImageSet:
    y = None if labels is None else torch.tensor([labels[row] for row in rows], dtype=torch.int64)
    ids = [whole.ids[row] for row in rows]
    return ImageSet(whole.images[torch.tensor(rows, dtype=torch.int64)], y, tuple(classes), ids)


def read(path: Path) -> np.ndarray:
    """The array of images in a file, unchanged; a single image becomes an array of one.

    Raises:
        InputError: it cannot be read.
    """
    return read_all(path)[0]


def read_all(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images, and the array "labels" if an .npz file has one."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # an .npz file is a zip archive
                file.seek(0)
                with np.load(file, allow_pickle=False) as found:
                    name = only(found.files)
                    require_room(found.zip, [name])
                    rest = [other for other in found.files if other not in (name, LABELS)]
                    if rest:
                        say(f"of {str(path)!r} only {name!r} and {LABELS!r} are read, not {', '.join(rest[:5])}")
                    return with_count(found[name]), labels_in(found, name)
        array = np.load(path, mmap_mode=mode(path.stat().st_size), allow_pickle=False)
        return with_count(array), None
    except InputError as error:
        raise InputError(f"array {str(path)!r} cannot be used: {error}") from error
    except OSError as error:
        raise InputError(f"array {str(path)!r} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # a damaged file raises many kinds of exceptions; a pickled one ValueError
        raise InputError(f"array {str(path)!r} cannot be read: {first_line(error)}") from error


def labels_in(found: Any, images: str) -> np.ndarray | None:
    if LABELS not in found.files or images == LABELS:
        return None
    try:
        return found[LABELS]
    except ValueError as error:
        say(f"array {LABELS!r} is not used: {first_line(error)}")
        return None


def with_count(array: np.ndarray) -> np.ndarray:
    """A single colour image as an array of one.

    An array of three dimensions is one image if its last dimension is 3 or 4 or its first is 3, and else N gray images.
    """
    one = array.ndim == 3 and (array.shape[2] in (3, 4) or array.shape[0] == 3)
    return array[None] if one else array


def require_room(archive: zipfile.ZipFile, names: Collection[str]) -> None:
    """Raise InputError if the arrays do not fit in memory: a small archive may hold large arrays."""
    files = {*names, *(f"{name}.npy" for name in names)}
    size = sum(info.file_size for info in archive.infolist() if info.filename in files)
    if not fits(size, torch.device("cpu")):
        raise InputError(f"its contents take {size:,} bytes, more than half of the free memory")


def only(names: list[str]) -> str:
    """The name of the array of images in an .npz file."""
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
