"""What machine this is, and whether the GPU is free."""

from __future__ import annotations

import platform

import torch

from bench.gpu import products_a_second
from bench.gpu_program.context import Context
from crlf.runtime.devices import describe, wait_for

BUSY = 0.1  # of the GPU's memory: when others hold more, it is not ours alone
COPIED = 2**28  # float32 numbers in a copy that measures the memory


def measure(c: Context) -> None:
    row = {
        "device": describe(c.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if c.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(c.device)
        row |= {"memory_GB": total / 1e9, "free_GB": free / 1e9, "CUDA": torch.version.cuda}
        if total - free > BUSY * total:
            row["surprise"] = (
                f"others hold {(total - free) / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB: timings may be off"
            )
    c.emit(row)
    c.emit(
        {
            "table": "limits",
            "what": "bf16 products, TFLOPS",
            "value": products_a_second(c.device, c.sizes.matrix) / 1e12,
        }
    )
    if c.device.type == "cuda":
        c.emit({"table": "limits", "what": "copy, read and written, TB/s", "value": copied_a_second(c.device) / 1e12})


def copied_a_second(device: torch.device, times: int = 10) -> float:
    """Bytes a second of a copy within the GPU's memory, read and written."""
    a = torch.randn(COPIED, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    wait_for(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        b.copy_(a)
    end.record()
    wait_for(device)
    return 2 * a.nbytes * times / (start.elapsed_time(end) / 1000)
