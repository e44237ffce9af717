"""The allocator of a whole process: for programs, and not for a library to choose."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, as the allocators of GPUs do; elsewhere do nothing.

    By default it gives every large activation back to the kernel, and the next step faults it in again page by page:
    on two cores that cost the light CNN a quarter of its speed (`python -m bench memory`). The commands of crlf call
    it, and its functions do not: it would change the program that imports them.

    Returns:
        Whether the allocator took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1  # malloc.h
    return bool(mallopt(mmap_threshold, largest)) and bool(mallopt(trim_threshold, largest))
