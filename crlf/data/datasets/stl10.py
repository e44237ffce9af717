"""STL-10: A. Coates, H. Lee and A. Ng, "An analysis of single-layer networks in unsupervised feature learning", 2011.

5,000 training and 8,000 test images of 10 classes, and 100,000 without labels from a wider distribution: these are what
it is pretrained on, the others are for the probes. 96×96 pixels. The archive and its files are known by the MD5 that
torchvision has for them. Decoding needs 3 GB of memory, once; later the unlabelled images are mapped from the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crlf.data.datasets import download
from crlf.data.datasets.official import SPLITS, Official
from crlf.data.image_set import ImageSet
from crlf.errors import InputError, first_line

SIDE = 96  # pixels


def decode(files: Sequence[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray | None]:
    """A split from its files of raw bytes: images, which are stored column by column, and labels, which begin at 1.

    Returns:
        images: uint8 (N, 3, 96, 96), a view of the bytes, not contiguous.
        labels: uint8 (N,) from 0 on; None if there is no file of labels.

    Raises:
        InputError: a file has another size, or a label is not 1..10.
    """
    (name, data), *rest = files
    try:
        images = np.frombuffer(data, np.uint8).reshape(-1, 3, SIDE, SIDE).swapaxes(2, 3)  # (N, 3, W, H) to (N, 3, H, W)
        labels = np.frombuffer(rest[0][1], np.uint8) - 1 if rest else None
        if labels is not None and (len(labels) != len(images) or labels.max(initial=0) > 9):
            raise ValueError(f"{len(images)} images have {len(labels)} labels in 1..{int(labels.max(initial=0)) + 1}")
    except ValueError as error:
        raise InputError(f"{name} cannot be read as images of STL-10: {first_line(error)}") from error
    return images, labels


STL10 = Official(
    name="stl10",
    title="STL-10",
    classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    batches={
        "train": ("train_X.bin", "train_y.bin"),
        "test": ("test_X.bin", "test_y.bin"),
        "unlabelled": ("unlabeled_X.bin",),
    },
    decode=decode,
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    fetched=2_640_397_119,
    folder="stl10_binary",
    shape=(3, SIDE, SIDE),
    files_md5={
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    },
    largest=100_000 * 3 * SIDE * SIDE,
    slow=True,
)


def load(data_dir: str | Path | None = None, spec: Official = STL10) -> tuple[ImageSet, ImageSet]:
    """The training and the test images: (train, test), 3×96×96. Arguments and errors are those of `official.load`."""
    train, test = download.load(data_dir, spec, SPLITS)
    return train, test


def unlabelled(data_dir: str | Path | None = None, spec: Official = STL10) -> ImageSet:
    """The images without labels, 3×96×96. Arguments and errors are those of `official.load`."""
    return download.load(data_dir, spec, ["unlabelled"])[0]
