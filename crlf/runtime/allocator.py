"""Memory allocator settings of the process, for programs and not for libraries."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed memory, as GPU allocators do. On other systems it does nothing.

    By default malloc returns every large activation to the kernel, and the next step faults it in again page by page.
    On two cores this cost the light CNN a quarter of its speed (`python -m bench memory`). The commands of crlf call
    this function; the Python API does not, since it would change the program that imports it.

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
