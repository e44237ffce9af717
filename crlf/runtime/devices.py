"""Devices: choosing one, its precision and its memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from crlf.errors import InputError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bf16")
MODES = ("none", "graphs", "kernels", "all")  # of compiling a step


def pick_device(name: str = "auto") -> torch.device:
    """The device with this name; "auto" is the first available of cuda, mps and cpu.

    Raises:
        InputError: the name is not known, or this machine has no such device.
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise unknown("device", name, DEVICES)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, is_there in there.items() if is_there))
    if not there[kind]:
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise InputError(f"device {name!r} is not on this machine: torch {torch.__version__} finds {found}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not on this machine: it has {torch.cuda.device_count()} GPUs")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """A short description of the device, such as "cpu, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32: on NVIDIA from Ampere on, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(is_there() for is_there in asked if is_there is not None)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision of `PRECISIONS` on a device: torch.bfloat16 or torch.float32."""
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(device))
    return torch.bfloat16 if bf16 else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """An autocast context for the network's products; weights, losses and statistics stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype_of(precision, device) is torch.bfloat16)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_used(device: torch.device) -> int:
    """Bytes that this process uses on the device; 0 if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return bytes_held(1)


def bytes_held(column: int) -> int:
    """Bytes from a column of /proc/self/statm: 1 for resident memory, 5 for data, which limits count; 0 elsewhere."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def memory_there(device: torch.device) -> int:
    """Bytes of memory that this process may use on the device; 0 if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
    return min([whole, *limits()])


def limits() -> Iterator[int]:
    """Memory limits in bytes, of the container and of the process (`ulimit -d`)."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # the value may be "max"
            yield int(Path(path).read_text())
    with contextlib.suppress(ImportError):  # Windows
        import resource

        data = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if data != resource.RLIM_INFINITY:
            yield data


def fits(size: int, device: torch.device) -> bool:
    """Whether images of `size` bytes fit on the device: they may take at most half of the free memory."""
    there = memory_there(device)
    held = bytes_held(5) if device.type == "cpu" else 0
    return not there or size <= (there - held) / 2


FEW = 5000  # rows; products with fewer are small


def threads_for(rows: int) -> contextlib.AbstractContextManager[None]:
    """A context with one thread for products of few rows, and if there are only two threads, which usually share a
    core: the linear probe of 50,000 embeddings took 36 s with the two threads of a core, and 25 s with one."""
    return one_thread() if rows < FEW or torch.get_num_threads() == 2 else contextlib.nullcontext()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for torch on the CPU. Small products gain nothing from more, and lose much if another program uses
    a core: fits of 500 images then took 24 s with two threads, and 0.6 s with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
