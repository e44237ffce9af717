"""Stellarium's catalogue of objects in the deep sky: what each one is."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

GALAXY, ACTIVE, INTERACTING = 0, 1, 3  # the types, as Stellarium numbers them
OPEN, GLOBULAR, PLANETARY, REFLECTION = 6, 7, 11, 13
EMISSION = (15, 16, 17)  # emission nebulae, clusters in one, and regions of ionised hydrogen
KINDS = {
    INTERACTING: "interacting galaxies",
    OPEN: "open cluster",
    GLOBULAR: "globular cluster",
    PLANETARY: "planetary nebula",
    REFLECTION: "reflection nebula",
    **dict.fromkeys(EMISSION, "emission nebula"),
}
NUMBERS = ("n", "ic", "m", "c", "barnard", "sh2-", "vdb", "rcw", "ldn", "lbn", "cr", "mel", "p", "u")  # catalogues


def objects(path: Path) -> dict[str, str]:
    """A class by the catalogue's letters and number, such as m31 or n7000; objects of other kinds are left out."""
    data, place = gzip.decompress(path.read_bytes()), 0

    def take(form: str) -> tuple:
        nonlocal place
        values = struct.unpack_from(">" + form, data, place)
        place += struct.calcsize(">" + form)
        return values

    def text() -> str:
        nonlocal place
        (length,) = take("I")
        place += length
        return data[place - length : place].decode("utf-16-be")

    text(), text()  # the version and the edition
    found = {}
    while place < len(data):
        take("I4d")  # a number, where it is, and how bright
        (kind,), shape = take("I"), text()
        take("2di6d")  # its size and angle, red shift, parallax and distance, each with its error
        numbers = take("14I")
        text(), take("2I"), [text() for _ in range(7)], take("5I")  # further catalogues
        if label := KINDS.get(kind) or galaxy(kind, shape):
            found.update({f"{letters}{n}": label for letters, n in zip(NUMBERS, numbers, strict=True) if n})
    return found


def galaxy(kind: int, shape: str) -> str:
    """The class of a galaxy by its type in the scheme of Hubble and de Vaucouleurs, such as SAB(rs)bc or E3."""
    if kind not in (GALAXY, ACTIVE):
        return ""
    plain = re.sub(r"\(.*?\)|^R'?_?\d?|[^A-Za-z0-9+-]", "", shape)
    if re.match(r"d?E|SA?B?0|L", plain):
        return "elliptical or lenticular galaxy"
    if re.match(r"d?I|S?A?B?m", plain):
        return "irregular galaxy"
    if re.match(r"SA?B", plain):
        return "barred spiral galaxy"
    return "spiral galaxy" if re.match(r"S|dS", plain) else ""
