"""What any source of images becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ImageSet:
    """Images, and what is known of them. Row i is image i, for good."""

    images: torch.Tensor
    """uint8 (N, C, H, W)."""
    labels: torch.Tensor | None
    """int64 (N,), or None where there are none."""
    classes: tuple[str, ...]
    """The name of each label."""
    ids: Sequence[str]
    """A name for each image, such as "train/00000"."""

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> ImageSet:
        """The first `count` images; all of them if `count` is 0 or larger than the set."""
        if not 0 < count < len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return ImageSet(self.images[:count], labels, self.classes, self.ids[:count])
