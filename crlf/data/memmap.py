"""Maps of files that may be larger than the memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crlf.errors import InputError
from crlf.runtime.devices import fits


def mode(size: int) -> Literal["c", "r"]:
    """How numpy maps a file of so many bytes: copy on write where a copy would fit, else read-only.

    torch wants memory that it may write to. A map that may be written to is however charged as if it had been: Linux
    refuses one that is larger than memory and swap, or than RLIMIT_DATA. Writing to a read-only one ends the process.
    """
    return "c" if fits(size, torch.device("cpu")) else "r"


@dataclass(frozen=True)
class Mapped:
    """A file that is mapped, as it was then: what others write to it shows in the map, and what they cut off is an
    access that ends the process."""

    path: Path
    size: int
    """Bytes."""
    changed: int
    """Nanoseconds."""

    @classmethod
    def of(cls, path: Path) -> Mapped:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def require_unchanged(self) -> None:
        """Raise InputError when the file is another one than it was."""
        try:
            same = Mapped.of(self.path) == self
        except OSError:
            return  # it is gone by name only: the map keeps what it was
        if not same:
            raise InputError(
                f"{str(self.path)!r} was changed while its images were in use: start again with it as it is"
            )


def tensor(array: np.ndarray) -> Tensor:
    """The same numbers as a tensor, where they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to images
        return torch.from_numpy(array)
