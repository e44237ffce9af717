"""NT-Xent's memory and time against the batch: in chunks with recomputation, and at once; a process each.

Memory is the growth of the process's peak while the loss and its gradient are computed, the projections (128 wide, in
float32, two views an image) being there already.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

SIZES = (1024, 4096, 16_384, 65_536)  # embeddings
AT_ONCE = 16_384  # the largest that is also computed at once: it takes 5 GB
PROGRAM = """
import resource, sys, time, torch
from crlf.methods import simclr
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
count, at_once = int(sys.argv[1]), sys.argv[2] == "at once"
if at_once:
    simclr.LOGITS = 2**62
torch.manual_seed(0)
small = torch.randn(2, 64, 128, requires_grad=True)
simclr.nt_xent_views(small, 0.2).backward()  # what torch loads at first use is not the loss's
z = torch.randn(2, count // 2, 128, requires_grad=True)
before, start = peak(), time.perf_counter()
loss = simclr.nt_xent_views(z, 0.2)
loss.backward()
print(time.perf_counter() - start, peak() - before, loss.item(), z.grad.double().norm().item())
"""


def run(count: int, how: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(count), how], capture_output=True, text=True, check=True)
    seconds, memory, loss, gradient = map(float, done.stdout.split())
    return {
        "embeddings": count,
        "how": how,
        "seconds": seconds,
        "memory_MB": memory / 1e6,
        "loss": f"{loss:.6f}",
        "gradient_norm": f"{gradient:.6e}",
    }


def measure(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    return [
        run(count, how) for count in sizes for how in ("in chunks", "at once") if how == "in chunks" or count <= AT_ONCE
    ]
