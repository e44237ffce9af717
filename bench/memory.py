"""Training speed with glibc's defaults and with freed memory kept, each in processes of its own, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from bench.timing import median_ratio

PROGRAM = """
import resource, sys, time, torch
from crlf.runtime import allocator
from crlf.encoders import build
keep = sys.argv[1] == "kept" and allocator.keep_freed_memory()
network = build("cnn", 3, 32)
views = torch.rand(512, 3, 32, 32).contiguous(memory_format=torch.channels_last)
for i in range(13):
    if i == 3:
        start = time.perf_counter()
    network(views).square().mean().backward()
print(10 * 512 / (time.perf_counter() - start), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    results: dict[str, list[tuple[float, int]]] = {"default": [], "kept": []}
    for _ in range(rounds):
        for setting, found in results.items():
            done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True)
            speed, faults = done.stdout.split()
            found.append((float(speed), int(faults)))
    default = [speed for speed, _ in results["default"]]
    return [
        {
            "freed memory": setting,
            "views_per_second": statistics.median(speed for speed, _ in found),
            "of_default": median_ratio([speed for speed, _ in found], default),
            "page_faults": statistics.median(faults for _, faults in found),
        }
        for setting, found in results.items()
    ]
