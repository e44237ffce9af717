"""`crlf` as the tests of several hosts start it: in float64, with a small network, and steps take PACE s more.

PACE=0.2 python tests/paced.py pretrain shapes ...
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from two_ranks import Double, shrink

from crlf.cli import main
from crlf.training import loop, pretrain

WORDS = (
    *("--subset", "96", "--batch-size", "16", "--views", "2"),
    *("--precision", "float32", "--compile", "none", "--device", "cpu"),
)


def program(folder: Path) -> Path:
    """A folder for PATH in which `crlf` is this program."""
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "crlf"
    here = Path(__file__).resolve()
    paths = f"{here.parent}:{here.parents[1]}"
    script.write_text(f'#!/bin/sh\nexport PYTHONPATH={paths}\nexec "{sys.executable}" "{here}" "$@"\n')
    script.chmod(0o755)
    (folder / "bin" / "torchrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    (folder / "bin" / "torchrun").chmod(0o755)
    return folder / "bin"


def slowed(seconds: float) -> None:
    step = loop.Step.__call__

    def slow(self: loop.Step, *arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return step(self, *arguments, **named)

    loop.Step.__call__ = slow  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    shrink()
    slowed(float(os.environ.get("PACE", 0)))
    pretrain.State = Double  # type: ignore[misc]
    sys.exit(main())
