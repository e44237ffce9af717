"""Parts of a GPU program that fail in every way. Nothing is imported here that takes time: a part is a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any


def finds(seconds: float, emit: Any, what: str = "a") -> None:
    emit({"found": what, "seconds": seconds})


def raises(seconds: float, emit: Any) -> None:
    emit({"found": "before"})
    raise ValueError("a planted error")


def hangs(seconds: float, emit: Any) -> None:
    """It ignores every request to stop, and has a child that does too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    emit({"child": child.pid})
    time.sleep(600)


def dies(seconds: float, emit: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def runs_out_of_memory(seconds: float, emit: Any) -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
