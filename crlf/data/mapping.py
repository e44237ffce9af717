"""Maps of files that may be larger than the memory."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crlf.devices import fits


def mode(size: int) -> Literal["c", "r"]:
    """How numpy maps a file of so many bytes: copy on write where a copy would fit, else read-only.

    torch wants memory that it may write to. A map that may be written to is however charged as if it had been: Linux
    refuses one that is larger than memory and swap, or than RLIMIT_DATA. Writing to a read-only one ends the process.
    """
    return "c" if fits(size, torch.device("cpu")) else "r"


def tensor(array: np.ndarray) -> Tensor:
    """The same numbers as a tensor, where they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to images
        return torch.from_numpy(array)
