"""What is measured on the photographs: each a function of a set and a seed that gives embeddings of all of its images.

pixels             16 x 16 pixels
untrained [SIZE]   CRLF's encoder before its first step, at the size that it would choose or at SIZE pixels
imagenet SIZE [regions]
                   the frozen network of `imagenet` at SIZE pixels: its own pool, or 2 x 2 regions and mirror
crlf MINUTES [SETTING=VALUE ...]
                   `crlf pretrain` on the photographs without labels, for so many minutes: with its defaults, or with
                   other settings of recipe.json, such as images.image_size=64
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import crlf
from bench.photos import imagenet
from bench.photos.sets import Images, folder_of, images, listing_of, of_size
from crlf import encoders
from crlf.data import load_for_pretraining
from crlf.embedding.embed import embed_images
from crlf.errors import InputError, unknown
from crlf.recipe import Recipe

SIZES = (32, 64, 96, 128, 160, 224)
BATCH = 50  # images that are embedded at once: of 224 px they take 30 MB


class Embedded(NamedTuple):
    """All images of a set, in the order of their names."""

    emb: np.ndarray  # float32 (N, D)
    labels: np.ndarray  # int64 (N,)
    about: dict[str, Any]
    """What a row of the results also holds."""


def pixels(name: str, seed: int) -> Embedded:
    shown = images(name, 16)
    return Embedded(shown.pixels.flatten(1).numpy().astype(np.float32), shown.labels, {"image_size": 16})


def untrained(name: str, seed: int, size: int = 0) -> Embedded:
    """The encoder that pretraining with this seed begins with."""
    recipe = Recipe(data=str(listing_of(folder_of(name))), images=of_size(size), seed=seed)
    data = load_for_pretraining(recipe.data, settings=recipe.images)
    recipe, side = recipe.resolved(data), min(data.images.shape[2:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = encoders.build(recipe.encoder, data.images.shape[1], side, recipe.embedding.regions)
    shown = images(name, size)
    emb = embed_images(encoders.Frozen(net, recipe.embedding.mirror), shown.pixels, recipe.normalisation, BATCH)
    return Embedded(emb, shown.labels, {"image_size": side, "encoder": recipe.encoder})


def frozen(name: str, seed: int, size: int, regions: bool) -> Embedded:
    """The network trained on ImageNet; nothing in it depends on the seed, and it is embedded once."""
    if (key := (name, size, regions)) not in FROZEN:
        network = imagenet.imagenet_network(2 if regions else 1, mirror=regions)
        shown = images(name, size)
        emb = embed_images(network, shown.pixels, imagenet.NORMALISATION, BATCH)
        FROZEN.clear()  # one at a time
        FROZEN[key] = Embedded(emb, shown.labels, {"image_size": size})
    return FROZEN[key]


FROZEN: dict[tuple[str, int, bool], Embedded] = {}


def trained(
    name: str, seed: int, minutes: float, settings: Sequence[str] = (), asked: dict[str, Any] | None = None
) -> Embedded:
    """CRLF's defaults, as `crlf pretrain LIST --minutes M` has them, but for some settings.

    Args:
        settings: such as optim.lr=0.01.
        asked: the same as recipe.json holds them, in place of these.
    """
    listed, asked = str(listing_of(folder_of(name))), nested(settings) if asked is None else asked
    recipe = Recipe.from_dict({"data": listed, "minutes": minutes, "seed": seed, **asked})
    with tempfile.TemporaryDirectory() as folder:
        run = crlf.pretrain(recipe, out=os.path.join(folder, "run"), device="cpu")
        crlf.embed(run, device="cpu")
        emb, scores = run.array("train_emb.npy"), run.scores
        ids = run.ids("train") or []
    shown = images(name, 16)
    order = in_order(ids, name, shown)
    kept = ("train_seconds", "epochs", "views_seen", "pflop", "device", "encoder")
    about = {"image_size": scores["image_shape"][-1], **{key: scores[key] for key in kept if key in scores}}
    return Embedded(np.asarray(emb)[order], shown.labels, about)


def in_order(ids: list[str], name: str, shown: Images) -> list[int]:
    """The rows of a run's embeddings in the order of the names."""
    rows = {os.path.relpath(one, folder_of(name)): row for row, one in enumerate(ids)}
    if sorted(rows) != sorted(shown.names):
        raise InputError(f"the run embedded {len(rows)} of the {len(shown.names)} photographs")
    return [rows[one] for one in shown.names]


def nested(settings: Sequence[str]) -> dict[str, Any]:
    """Words such as optim.lr=0.01 as recipe.json holds them: {"optim": {"lr": 0.01}}."""
    found: dict[str, Any] = {}
    for word in settings:
        path, _, value = word.partition("=")
        *sections, key = path.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[key] = json.loads(value)
        except json.JSONDecodeError:
            place[key] = value  # a word
    return found


def contestant(text: str) -> Callable[[str, int], Embedded]:
    """The function of a name such as "imagenet 64 regions".

    Raises:
        InputError: there is none of this name.
    """
    match text.split():
        case ["pixels"]:
            return pixels
        case ["untrained"]:
            return untrained
        case ["untrained", size] if size.isdigit():
            return lambda name, seed: untrained(name, seed, int(size))
        case ["imagenet", size, *rest] if size.isdigit() and rest in ([], ["regions"]):
            return lambda name, seed: frozen(name, seed, int(size), bool(rest))
        case ["crlf", minutes, *settings] if is_number(minutes) and all("=" in one for one in settings):
            return lambda name, seed: trained(name, seed, float(minutes), settings)
    raise unknown("contestant", text, ALL)


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


ALL = (
    "pixels",
    "untrained",
    *(f"imagenet {size}{readout}" for size in SIZES for readout in ("", " regions")),
    "crlf 5",
    "crlf 20",
)
