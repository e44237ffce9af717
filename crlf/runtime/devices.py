"""Where tensors live, and what that place needs."""

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
    """The device of this name; "auto" is the first that is there of cuda, mps and cpu.

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
    """A few words for the record, such as "cpu, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster there than float32: NVIDIA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(is_there() for is_there in asked if is_there is not None)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What a precision of `PRECISIONS` means on a device: torch.bfloat16 or torch.float32."""
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(device))
    return torch.bfloat16 if bf16 else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which the network's products have this precision; weights, losses and statistics are float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype_of(precision, device) is torch.bfloat16)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_used(device: torch.device) -> int:
    """Bytes that this process holds on the device; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return bytes_held(1)


def bytes_held(column: int) -> int:
    """A number of /proc/self/statm: 1 for what is in memory, 5 for what limits count, touched or not; 0 elsewhere."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def memory_there(device: torch.device) -> int:
    """Bytes of memory that the device has, and this process may use; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
    return min([whole, *limits()])


def limits() -> Iterator[int]:
    """What this process may hold, in bytes: the limits of its container, and of itself (`ulimit -d`)."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            yield int(Path(path).read_text())
    with contextlib.suppress(ImportError):  # Windows
        import resource

        data = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if data != resource.RLIM_INFINITY:
            yield data


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes of images leave enough memory to work with them there: at most half of it."""
    there = memory_there(device)
    held = bytes_held(5) if device.type == "cpu" else 0
    return not there or size <= (there - held) / 2


FEW = 5000  # rows of a small product


def threads_for(rows: int) -> contextlib.AbstractContextManager[None]:
    """One thread for products of few rows, else as many as there are; one instead of two, which as a rule are of one
    core: the linear probe of 50,000 embeddings took 36 s with the two threads of a core, and 25 s with one."""
    return one_thread() if rows < FEW or torch.get_num_threads() == 2 else contextlib.nullcontext()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch on the CPU. Small products gain nothing from more, and where another program has a core
    they wait for it at each: fits of 500 images took 24 s with two threads then, and 0.6 s with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
