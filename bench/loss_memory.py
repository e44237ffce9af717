"""NT-Xent's memory and time against the batch: in chunks with recomputation, and at once; a process each.

Memory is the growth of the process's peak (Linux's VmHWM) while the loss and its gradient are computed, the projections
(128 wide, in float32, two views an image) being there already.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from crlf.methods.negatives import LOGITS

SIZES = (1024, 4096, 16_384, 65_536)  # embeddings
AT_ONCE = 16_384  # the largest that is also computed at once: it takes gigabytes
PROGRAM = r"""
import pathlib, re, sys, time, torch
from crlf.methods import negatives, simclr
def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
count, at_once = int(sys.argv[1]), sys.argv[2] == "at once"
torch.manual_seed(0)
small = torch.randn(2, 64, 128, requires_grad=True)
for negatives.LOGITS in (2**10, 2**20):
    simclr.nt_xent_views(small, 0.2).backward()  # what torch loads at first use is not the loss's
negatives.LOGITS = 2**62 if at_once else int(sys.argv[3])
z = torch.randn(2, count // 2, 128, requires_grad=True)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here, not from the parent's
before, start = peak(), time.perf_counter()
loss = simclr.nt_xent_views(z, 0.2)
loss.backward()
print(time.perf_counter() - start, peak() - before, loss.item(), z.grad.double().norm().item())
"""


def run(count: int, how: str, logits: int) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, str(count), how, str(logits)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory, loss, gradient = map(float, done.stdout.split())
    return {
        "embeddings": count,
        "how": how,
        "seconds": seconds,
        "memory_MB": memory / 1e6,
        "loss": f"{loss:.6f}",
        "gradient_norm": f"{gradient:.6e}",
    }


def measure(sizes: tuple[int, ...] = SIZES, at_once: int = AT_ONCE, logits: int = LOGITS) -> list[dict[str, Any]]:
    ways = ((count, how) for count in sizes for how in ("in chunks", "at once"))
    return [run(count, how, logits) for count, how in ways if how == "in chunks" or count <= at_once]
