"""The methods by name. A method is one file here and one line in `METHODS`."""

from __future__ import annotations

from crlf.methods.barlow import BarlowTwins
from crlf.methods.base import Method
from crlf.methods.byol import BYOL
from crlf.methods.dcl import DCL
from crlf.methods.dino import DINO
from crlf.methods.mocov2 import MoCov2
from crlf.methods.mocov3 import MoCov3
from crlf.methods.nnclr import NNCLR
from crlf.methods.simclr import SimCLR
from crlf.methods.simsiam import SimSiam
from crlf.methods.supcon import SupCon
from crlf.methods.swav import SwAV
from crlf.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "dcl": DCL,
    "mocov2": MoCov2,
    "mocov3": MoCov3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow": BarlowTwins,
    "vicreg": VICReg,
    "nnclr": NNCLR,
    "swav": SwAV,
    "dino": DINO,
    "supcon": SupCon,
}
