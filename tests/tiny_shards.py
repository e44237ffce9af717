"""WebDataset shards of tiny images, and their files in a folder."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tiny_images import encoded, pixels


def jpegs(count: int, side: int = 12) -> list[bytes]:
    return [encoded(pixels(seed, side, side + 4), "JPEG") for seed in range(count)]


def shard(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def shards(folder: Path, files: Sequence[bytes], each: int, labels: int = 0) -> Path:
    """Some of the files in each shard, with a label in turn where there are any, and a sidecar."""
    for number, start in enumerate(range(0, len(files), each)):
        members = []
        for row, data in enumerate(files[start : start + each], start):
            members += [(f"{row:05}.jpg", data), (f"{row:05}.json", b"{}")]
            members += [(f"{row:05}.cls", str(row % labels).encode())] if labels else []
        shard(folder / f"part-{number:03}.tar", members)
    return folder


def loose(folder: Path, files: Sequence[bytes]) -> Path:
    folder.mkdir(parents=True)
    for row, data in enumerate(files):
        (folder / f"{row:05}.jpg").write_bytes(data)
    return folder
