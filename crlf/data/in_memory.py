"""Reads images given in Python: paths, arrays, PIL images, or a list of these."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from crlf.data.files import arrays
from crlf.data.files.arrays import three_channels
from crlf.data.files.decode import rgb, square, upright
from crlf.data.files.decode_cache import look_into
from crlf.data.files.folder import ImageSettings
from crlf.data.files.listing import look_at
from crlf.data.stream import ahead, chunks, require_shape, scaled, side_of
from crlf.errors import InputError, first_line

One: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
Images: TypeAlias = "One | Iterable[One]"
NAME = Path("images")  # the name in messages of images without a file


def batches(images: Images, shape: Sequence[int], settings: ImageSettings, size: int) -> Iterator[torch.Tensor]:
    """Prepare images like the training images, in batches: uint8 (n, C, H, W), n at most `size`, in order.

    Args:
        images: the path of a file, a PIL image or an array, or any number of these. An array is uint8 (N, H, W, C),
            (N, C, H, W) or (N, H, W), or a single image without N. An array of three dimensions is one image if its
            last dimension is 1, 3 or 4 or its first is 3, and else N gray images.
        shape: (C, H, W) of the training images. Files and PIL images are resized to it; arrays must have it, unless the
            settings resize them too.
        settings: how the training images were read.
        size: the batch size.

    Raises:
        InputError: an image cannot be read or does not fit; the message names it.
    """
    if isinstance(images, torch.Tensor):
        images = images.cpu().numpy()
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        yield from of_array(images, shape, settings, size)
        return
    several = isinstance(images, Iterable) and not isinstance(images, str | bytes | Image.Image)
    numbered = enumerate(images if several else [images])  # type: ignore[arg-type]
    groups = iter(lambda: list(itertools.islice(numbered, size)), [])

    def look(item: tuple[int, Any]) -> np.ndarray:
        return one_image(item[1], shape, settings, item[0])

    for _, found in ahead(groups, look, os.cpu_count() or 1):
        yield torch.from_numpy(np.stack(list(found)))


def of_array(array: np.ndarray, shape: Sequence[int], settings: ImageSettings, size: int) -> Iterator[torch.Tensor]:
    array = with_count(array)
    for rows in chunks(range(len(array)), size):
        yield torch.from_numpy(fitted(array[rows.start : rows.stop], shape, settings))


def with_count(array: np.ndarray) -> np.ndarray:
    """One image as an array of one; see `batches` for how three dimensions are read."""
    one = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    return array[None] if one else arrays.with_count(array)


def fitted(array: np.ndarray, shape: Sequence[int], settings: ImageSettings) -> np.ndarray:
    """Convert uint8 (n, …) of any layout to (n, C, H, W), in new memory."""
    images = three_channels(array, NAME)
    if settings.image_size:
        images = scaled(images, settings.image_size)
    require_shape(images.shape[1:], shape, "images in an array")
    return images.copy() if np.shares_memory(images, array) else images


def one_image(image: Any, shape: Sequence[int], settings: ImageSettings, place: int) -> np.ndarray:
    """Read one image of any kind: uint8 (C, H, W). `place` is its number, for messages."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise InputError(f"image {place} must be an array (H, W), (H, W, C) or (C, H, W), not {image.shape}")
        return fitted(image[None], shape, settings)[0]
    if isinstance(image, str | os.PathLike):
        return of_file(os.fspath(image), shape, settings)
    if not isinstance(image, Image.Image):
        raise InputError(f"image {place} must be a path, an array or a PIL image, not a {type(image).__name__}")
    side = side_of(shape, "PIL images")
    try:
        return square(rgb(upright(image), settings.white), side)
    except Exception as error:  # what Pillow has not read yet may be damaged, in almost any way
        raise InputError(f"image {place} cannot be used: {first_line(error)}") from error


def of_file(path: str, shape: Sequence[int], settings: ImageSettings) -> np.ndarray:
    """The image in a file: uint8 (3, H, W)."""
    side = side_of(shape, "files")
    pixels, outcome = look_into(look_at(path, os.path.expanduser(path)), side, settings.max_pixels, settings.white)
    if pixels is None:
        raise InputError(f"image {path!r} cannot be used: {outcome.skipped}")
    return pixels
