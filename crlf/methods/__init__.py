"""The methods by name, which is the name of the file. A method is one file here and one line among the imports.

An import says all: type checkers and editors follow it, a wrong one fails at once, and the table comes of it. `as` says
that the name is meant to be had from here.
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
from crlf.methods.mocov2 import MoCov2 as MoCov2
from crlf.methods.mocov3 import MoCov3 as MoCov3
from crlf.methods.nnclr import NNCLR as NNCLR
from crlf.methods.simclr import SimCLR as SimCLR
from crlf.methods.simsiam import SimSiam as SimSiam
from crlf.methods.supcon import SupCon as SupCon
from crlf.methods.swav import SwAV as SwAV
from crlf.methods.vicreg import VICReg as VICReg

METHODS: dict[str, type[Method]] = {
    thing.__module__.rpartition(".")[2]: thing
    for thing in tuple(globals().values())
    if inspect.isclass(thing) and issubclass(thing, Method) and not inspect.isabstract(thing)
}


def known(name: object) -> type[Method]:
    """What is known of the method that a run folder names: `Method` itself, which says nothing, where it is no name."""
    return METHODS.get(str(name), Method)
