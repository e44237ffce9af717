"""`ImageSet`: the common form of all sources of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from crlf.data.encoded import Encoded, Pixels
from crlf.data.memmap import Mapped
from crlf.errors import InputError
from crlf.runtime.devices import fits
from crlf.text import size

SAMPLE = 256  # images in a fingerprint; a set may be larger than memory


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels and names. Row i is always image i.

    Raises:
        InputError: a tensor of the wrong shape or dtype, a number of labels or ids that differs from that of the
            images, or a label without a class.
    """

    images: Pixels
    """uint8 (N, C, H, W), contiguous; or files that become this when rows are asked for (crlf.data.encoded)."""
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
        if isinstance(x, torch.Tensor) and (x.dtype != torch.uint8 or x.ndim != 4 or not x.is_contiguous()):
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
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self):,} images of {shape}, {len(self.classes)} classes)"

    @property
    def decoded(self) -> torch.Tensor:
        """All images in memory or mapped, uint8 (N, C, H, W).

        Raises:
            InputError: they are decoded when they are asked for, and would not fit into memory.
        """
        if isinstance(self.images, torch.Tensor):
            return self.images
        if not fits(self.images.nbytes, torch.device("cpu")):
            need = f"{len(self):,} decoded images take {size(self.images.nbytes)}, more than half of the free memory"
            raise InputError(f"{need}: --decode ahead maps them from the disk, --subset takes fewer")
        return self.images[:]

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
        return self.rows(slice(0, count))

    def rows(self, rows: slice | list[int]) -> ImageSet:
        """The images of some rows, not decoded if these are not."""
        images = self.images.part(rows) if isinstance(self.images, Encoded) else self.images[rows]
        labels = None if self.labels is None else self.labels[rows]
        ids = self.ids[rows] if isinstance(rows, slice) else [self.ids[row] for row in rows]
        return replace(self, images=images, labels=labels, ids=ids)

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
        return replace(self.rows(rows), mapped=None)

    def require_unchanged(self) -> None:
        """Raise InputError if the file that the images are mapped from has changed."""
        if self.mapped:
            self.mapped.require_unchanged()
