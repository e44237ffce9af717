"""Training from a map of a file, read ahead by a thread, beside training from memory: what reading costs a step.

The images of CIFAR-10 lie in a file of their own. Cold: the system is told to forget the file before each round, so
that every row comes from the disk. The default recipe; all run in one process, in turn.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.timing import each_in_turn, median_ratio
from crlf.data import ImageSet, load
from crlf.data.memmap import tensor
from crlf.recipe import RECIPES
from crlf.runs.run import Run
from crlf.training.loop import train
from crlf.training.state import State

STEPS = 48


def measure(rounds: int = 7) -> list[dict[str, Any]]:
    whole = load("cifar10")[0]
    recipe = dataclasses.replace(RECIPES["default"], epochs=1).resolved(whole)
    state = State(recipe, whole.first(STEPS * recipe.batch_size), torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=".") as folder:  # of the disk: /tmp may be memory
        path = Path(folder) / "images.npy"
        np.save(path, whole.decoded.numpy())

        def seconds(source: torch.Tensor, resident: bool) -> float:
            # The order is that of all images, of which an epoch of this length takes the first batches.
            state.step, state.seconds, state.epoch_losses = 0, 0.0, []
            run = Run(Path(folder) / "run")
            run.path.mkdir(exist_ok=True)
            with mock.patch("crlf.data.loader.fits", return_value=resident):
                train(run, recipe, ImageSet(source, None, (), whole.ids), state)
            return state.seconds

        def from_file(cold: bool) -> float:
            if cold:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return seconds(tensor(np.load(path, mmap_mode="r")), resident=False)

        things = {
            "from memory": lambda: seconds(whole.decoded, resident=True),
            "from a file, read before": lambda: from_file(cold=False),
            "from a file, cold": lambda: from_file(cold=True),
        }
        taken = each_in_turn(things, rounds)
    return [
        {
            "images": name,
            "ms_a_step": 1000 * statistics.median(times) / STEPS,
            "of_memory": median_ratio(times, taken["from memory"]),
        }
        for name, times in taken.items()
    ]
