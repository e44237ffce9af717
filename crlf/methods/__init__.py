"""The methods by name. A method is one file here and one line in `METHODS`."""

from __future__ import annotations

from crlf.methods.base import Method
from crlf.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
}
