"""What any source of images becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from crlf.data.memmap import Mapped
from crlf.errors import InputError

SAMPLE = 256  # images that a fingerprint looks at; a set may be larger than memory


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images, and what is known of them. Row i is image i, for good.

    Raises:
        InputError: a tensor of another shape or dtype, another number of labels or ids than of images, or a label
            that has no class.
    """

    images: torch.Tensor
    """uint8 (N, C, H, W), contiguous."""
    labels: torch.Tensor | None
    """int64 (N,), or None where there are none."""
    classes: tuple[str, ...]
    """The name of each label."""
    ids: Sequence[str]
    """A name for each image, such as "train/00000"."""
    mapped: Mapped | None = None
    """The user's file that the images are mapped from, where they are."""
    white: int = 0
    """The number that was white in its files, where these have 16 bits or more."""
    hold_out: float = -1.0
    """The share of each class that was held out to test on, 0 where the training images are tested themselves; below
    0 where that is no question: without labels, or with a test split."""
    reach: int = 0
    """Pixels a side that half of its files reach (crlf.data.files.folder.typical), where it was made of files."""
    why: str = ""
    """It has no labels, where something was there that might have been such."""

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if x.dtype != torch.uint8 or x.ndim != 4 or not x.is_contiguous():
            raise InputError(f"images must be contiguous uint8 (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
        if len(self.ids) != len(x):
            raise InputError(f"{len(x)} images need as many ids, not {len(self.ids)}")
        if y is None:
            return
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise InputError(f"labels of {len(x)} images must be int64 ({len(x)},), not {y.dtype} {tuple(y.shape)}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
            raise InputError(f"labels must be 0..{len(self.classes) - 1}, not {int(y.min())}..{int(y.max())}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self):,} images of {size}, {len(self.classes)} classes)"

    def fingerprint(self, names: bool = True) -> str:
        """Tells this set from another: SHA-256 of its shape, and of the pixels of 256 of its images, with their
        names or without."""
        rows = torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).long().unique()
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if names:
            digest.update("\n".join(self.ids[row] for row in rows.tolist()).encode("utf-8", "surrogatepass"))
        digest.update(self.images[rows.to(self.images.device)].cpu().numpy().tobytes())
        return digest.hexdigest()

    def first(self, count: int) -> ImageSet:
        """The first `count` images; all of them if `count` is 0 or larger than the set."""
        if not 0 < count < len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels, ids=self.ids[:count])

    def without_copies(self) -> ImageSet:
        """The set with each image once, the first of those whose pixels are the same; itself where there are no others.

        What is left of a set that is mapped from the disk is read into memory.
        """
        seen: set[bytes] = set()
        rows = []
        for row, image in enumerate(self.images):
            digest = hashlib.blake2b(image.numpy().data, digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                rows.append(row)
        if len(rows) == len(self):
            return self
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels, ids=[self.ids[row] for row in rows], mapped=None)

    def require_unchanged(self) -> None:
        """Raise InputError when the file that the images are mapped from is another one than it was."""
        if self.mapped:
            self.mapped.require_unchanged()
