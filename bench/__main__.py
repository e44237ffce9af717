"""`python -m bench NAME [--json FILE]`: run a measurement, print its table, append a record to bench/records.jsonl."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import readme
from bench.tables import columns
from crlf.errors import InputError, unknown
from crlf.runtime.allocator import keep_freed_memory

BENCHES = {
    "cifar10": "the one command on CIFAR-10, start to end: accuracy and time of the default recipe",
    "cifar10-1": "the same with one epoch",
    "cifar10-seed": "the same with the original project's settings",
    "accuracy": "accuracy against time and against PFLOP, the default recipe beside the original project's; a figure",
    "throughput": "images a second of training: CRLF, lightly, torchvision v2, kornia, and the bare network",
    "loss-memory": "NT-Xent's memory and time against the batch, up to 65,536 embeddings",
    "shared-loss": "a process's share of a loss, of 1, 2 and 4 processes: CPU seconds and memory",
    "ablation": "what each choice of the default recipe is worth, on held-out training images",
    "methods": "every method side by side in the same time, on held-out training images, three seeds",
    "few-labels": "the linear probe with 1, 5 and 10 labels a class: one scale for all features, or a scale for each",
    "finetuning": "a classifier from few and from many labels: a linear layer, and all weights",
    "views": "views a second: CRLF, torchvision v2 and a PIL pipeline",
    "step": "a training step beside the bare network on ready-made views",
    "loading": "a training step with images read from a file, beside images in memory",
    "decode": "JPEG photographs to 64 and 224 pixels: images a second of CRLF, torchvision and Pillow",
    "streaming": "training from encoded images, decoded ahead of the step, beside images in memory",
    "search": "the nearest of 200,000 embeddings: an exact scan, scikit-learn, faiss",
    "memory": "training speed with the allocator's default and with memory that is kept",
    "probes": "linear probe and kNN beside scikit-learn's on real embeddings, and the quick probes",
    "gpu": "a ResNet-18 in training on an NVIDIA GPU: images a second, share of the peak, beside the bare network",
    "speedrun-knn90": "90 % kNN on CIFAR-10 as quickly as a GPU can, three seeds",
    "r18-best": "94 % linear on CIFAR-10 with a ResNet-18 on a GPU, three seeds",
    "launches": "kernels that a step launches on a GPU, stage by stage, counted on the CPU",
    "soak": "an hour of training: memory, open files and threads, and a figure",
    "short-runs": "a thousand short runs in one process: what they leave in memory and on the disk",
    "newton-schulz": "a step of Muon in float32 and of torch.optim.Muon in bf16",
}
RECORDS = Path(__file__).parent / "records.jsonl"


COMMANDS = {
    "gpu-program": "fifteen minutes of a GPU: --help says how",
    "record": "keep what a GPU program brought back: its folder",
    "photos": "sets of real photographs: CRLF, untrained, pixels and an ImageNet network; --help says how",
    "photos-ablation": "what each choice of the defaults for photographs is worth, on other sets; --help says how",
    "transfer": "trained weights on photographs: as they are, gone on from, and as a teacher; --help says how",
    "init-ablation": "how to go on from trained weights without labels; --help says how",
    "pictures": "the pictures of the README, from a run: its folder",
    "leaderboard": "measure runs of CIFAR-10 again and add them to the leaderboard: their folders",
    "label-free": "which measure without labels ranks encoders as probes do; --help says how",
}  # with arguments of their own
MODULES = {
    "gpu-program": "gpu_program.main",
    "record": "gpu_program.keep",
    "photos": "photos.main",
    "photos-ablation": "photos.ablation",
    "transfer": "transfer.main",
    "init-ablation": "transfer.adapting",
    "label-free": "transfer.label_free",
    "pictures": "pictures",
    "leaderboard": "entry",
}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return command(words[0], words[1:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", help="a measurement, list, or readme to write the tables of the pages")
    parser.add_argument("--json", type=Path, help="write the record to this file too")
    arguments = parser.parse_args(argv)
    if arguments.name == "list":
        print("\n".join(f"{name:<14} {what}" for name, what in {**BENCHES, **COMMANDS}.items()))
        return 0
    if arguments.name == "readme":
        readme.write(RECORDS)
        return 0
    if arguments.name not in BENCHES:
        print(f"bench: error: {unknown('measurement', arguments.name, [*BENCHES, *COMMANDS])}", file=sys.stderr)
        return 2
    keep_freed_memory()  # as the commands of crlf do
    try:
        rows = importlib.import_module(f"bench.{arguments.name.replace('-', '_')}").measure()
    except InputError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    print(columns(rows))
    record = {"bench": arguments.name, "command": f"python -m bench {arguments.name}", **machine(), "rows": rows}
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def command(name: str, words: list[str]) -> int:
    try:
        return importlib.import_module(f"bench.{MODULES[name]}").main(words)
    except InputError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


def keep(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Append the record of a measurement that was called with --record."""
    line = {"bench": name, "command": f"python -m bench {name} --record", **machine(), "rows": rows, **more}
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def machine() -> dict[str, Any]:
    """What a figure must be read beside."""
    import torch

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)
