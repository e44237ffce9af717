"""The table of methods. To add a method, add its file and one line to the imports; its name is that of the file.

Explicit imports are checked by type checkers and editors, and the table is made from them. `as` marks a name as public.
"""

from __future__ import annotations

import inspect

from crlf.methods.barlow import BarlowTwins as BarlowTwins
from crlf.methods.base import Method
from crlf.methods.byol import BYOL as BYOL
from crlf.methods.dcl import DCL as DCL
from crlf.methods.diet import DIET as DIET
from crlf.methods.dino import DINO as DINO
from crlf.methods.distill import Distill as Distill
from crlf.methods.empssl import EMPSSL as EMPSSL
from crlf.methods.lejepa import LeJEPA as LeJEPA
from crlf.methods.mocov2 import MoCov2 as MoCov2
from crlf.methods.mocov3 import MoCov3 as MoCov3
from crlf.methods.nnclr import NNCLR as NNCLR
from crlf.methods.resa import ReSA as ReSA
from crlf.methods.simclr import SimCLR as SimCLR
from crlf.methods.simsiam import SimSiam as SimSiam
from crlf.methods.supcon import SupCon as SupCon
from crlf.methods.swav import SwAV as SwAV
from crlf.methods.vicreg import VICReg as VICReg
from crlf.methods.visreg import VISReg as VISReg

METHODS: dict[str, type[Method]] = {
    thing.__module__.rpartition(".")[2]: thing
    for thing in tuple(globals().values())
    if inspect.isclass(thing) and issubclass(thing, Method) and not inspect.isabstract(thing)
}


def known(name: object) -> type[Method]:
    """The method that a run folder names, or `Method` itself if the name is not known."""
    return METHODS.get(str(name), Method)
