"""Whether all processes train the same run: with several hosts, one may have other files or another command."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from crlf.data import ImageSet
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.run import difference
from crlf.runtime import distributed

Card = dict[str, Any]


def require_agreement(recipe: Recipe, images: ImageSet, fingerprint: str) -> None:
    """Compare the images and settings of all ranks.

    Raises:
        InputError: on rank 0, if another rank differs.
        SystemExit: then, on the other ranks.
    """
    _compare({"images": len(images), "fingerprint": fingerprint, "recipe": recipe.to_dict()}, unlike)


def require_same_step(step: int) -> None:
    """Compare the steps that the ranks continue from. Raises as `require_agreement`."""
    where = "--out must be a folder on a disk that all hosts share"
    _compare({"step": step}, lambda a, b: "" if a == b else f"is at step {b['step']}, not {a['step']}: {where}")


def _compare(mine: Card, how: Callable[[Card, Card], str]) -> None:
    told = distributed.gather((socket.gethostname(), mine))
    for number, (host, card) in enumerate(told):
        if message := how(told[0][1], card):
            if distributed.rank() == 0:
                raise InputError(f"rank {number} on {host} {message}")
            raise SystemExit(distributed.FAILED)


def unlike(first: Card, other: Card) -> str:
    """How a rank differs from rank 0: the end of a sentence, or nothing."""
    files, command = "give all hosts the same files", "give all hosts the same command"
    settings = difference(other["recipe"], first["recipe"])
    if other["images"] != first["images"] and not any(name in ("data", "subset") for name, *_ in settings):
        return f"has {other['images']:,} images, not {first['images']:,} as rank 0: {files}"
    settings.sort(key=lambda found: found[0] in ("mean", "std"))  # measured on the images: seldom the cause
    if settings and (settings[0][0] not in ("mean", "std") or other["fingerprint"] == first["fingerprint"]):
        name, here, there = settings[0]
        return f"has {name} {here!r}, not {there!r} as rank 0: {command}"
    if other["fingerprint"] != first["fingerprint"]:
        return f"has other images than rank 0: {files}"
    return ""
