"""SVHN, house numbers: Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.

73,257 training and 26,032 test images; the easier half million of the split "extra" is not used. The files are those of
http://ufldl.stanford.edu/housenumbers, known by the MD5 that torchvision has for them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crlf.data.datasets import download
from crlf.data.datasets.official import SPLITS, Official
from crlf.data.image_set import ImageSet
from crlf.errors import InputError, first_line


def decode(files: Sequence[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """A split from its MATLAB file: `X`, uint8 (32, 32, 3, N), and `y`, (N, 1), where 10 stands for the digit 0.

    Returns:
        images: uint8 (N, 3, 32, 32).
        labels: uint8 (N,), the digit.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    from scipy.io import loadmat  # slow to import, and only the first start needs it

    ((name, data),) = files
    try:
        told = loadmat(io.BytesIO(data), variable_names=("X", "y"))
        images = np.ascontiguousarray(told["X"].transpose(3, 2, 0, 1))
        labels = told["y"].ravel().astype(np.uint8) % 10
        if images.dtype != np.uint8 or images.shape != (len(labels), *SVHN.shape):
            raise ValueError(f"X is {images.dtype} {told['X'].shape}, y has {len(labels)} labels")
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise InputError(f"{name} cannot be read as a MATLAB file of SVHN: {first_line(error)}") from error
    return images, labels


SVHN = Official(
    name="svhn",
    title="SVHN",
    classes=tuple("0123456789"),
    url="http://ufldl.stanford.edu/housenumbers/",
    batches={"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
    decode=decode,
    files_md5={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    fetched=182_040_794 + 64_275_384,
    slow=True,
)


def load(data_dir: str | Path | None = None, spec: Official = SVHN) -> tuple[ImageSet, ImageSet]:
    """The training and the test images: (train, test), 3×32×32. Arguments and errors are those of `official.load`."""
    train, test = download.load(data_dir, spec, SPLITS)
    return train, test
