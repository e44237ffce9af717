"""`ImageSet`: the common form of all sources of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from crlf.data.memmap import Mapped
from crlf.errors import InputError

SAMPLE = 256  # images in a fingerprint; a set may be larger than memory


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels and names. Row i is always image i.

    Raises:
        InputError: a tensor of the wrong shape or dtype, a number of labels or ids that differs from that of the
            images, or a label without a class.
    """

    images: torch.Tensor
    """uint8 (N, C, H, W), contiguous."""
    labels: torch.Tensor | None
    """int64 (N,), or None without labels."""
    classes: tuple[str, ...]
    """The name of each label."""
    ids: Sequence[str]
    """A name for each image, such as "train/00000"."""
    mapped: Mapped | None = None
    """The user's file that the images are mapped from, if any."""
    white: int = 0
    """The value of white in its files, if these have 16 bits or more."""
    hold_out: float = -1.0
    """The share of each class held out for testing; 0 if the training images are cross-validated; below 0 without
    labels, or with a test split."""
    reach: int = 0
    """The size in pixels that half of its files have at least (crlf.data.files.folder.typical); 0 if not from files."""
    why: str = ""
    """The reason why possible labels are not used."""

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
        """SHA-256 of the shape and of the pixels of 256 images, with or without their names."""
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
        """The set without copies: of images with the same pixels, the first is kept. Without copies, the set itself.

        If there are copies, the images of a mapped set are read into memory.
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
        """Raise InputError if the file that the images are mapped from has changed."""
        if self.mapped:
            self.mapped.require_unchanged()
