"""A set that does not fit is read ahead from its map: the same bits, and no more memory than the batches take."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import crlf
from crlf.data import loader
from crlf.data.loader import epoch_order
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOSS, Run
from crlf.runtime import devices

CPU = torch.device("cpu")
IMAGES = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rows_of(step: int) -> torch.Tensor:
    epoch, i = divmod(step, 6)
    return epoch_order(0, epoch, 50)[8 * i : 8 * i + 8]


@pytest.mark.parametrize("kind", [loader.Resident, loader.ReadAhead])
@pytest.mark.parametrize("first", [0, 4])
def test_a_batch_is_its_rows(kind: type, first: int):
    before = threading.active_count()
    with kind(IMAGES, rows_of, CPU) as found:
        for step in range(first, 20):
            assert torch.equal(found[step], IMAGES[rows_of(step)])
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", [loader.Resident, loader.ReadAhead])
def test_a_batch_is_its_rows_after_a_jump(kind: type):
    """As a run that goes on elsewhere: what was read ahead is of other steps."""
    with kind(IMAGES, rows_of, CPU) as found:
        for step in (0, 1, 7, 2, 4, 3, 17, 7):
            assert torch.equal(found[step], IMAGES[rows_of(step)]), step


def test_an_epoch_is_whole_batches_of_all_different_rows():
    """50 images in batches of 8: six batches, and two images are left out, others in each epoch."""
    epochs = [[loader.batch_rows(6 * epoch + i, 50, 8, seed=3) for i in range(6)] for epoch in range(4)]
    for number, epoch in enumerate(epochs):
        assert [len(rows) for rows in epoch] == [8] * 6
        assert torch.equal(torch.cat(epoch), epoch_order(3, number, 50)[:48])
    assert len({frozenset(torch.cat(epoch).tolist()) for epoch in epochs}) > 1
    assert Recipe(data="shapes", batch_size=8).steps_per_epoch(50) == 6


def test_reading_is_ahead_of_the_step():
    read: list[int] = []
    third = threading.Event()

    def noting(step: int) -> torch.Tensor:
        read.append(step)
        if step == 2:
            third.set()
        return rows_of(step)

    with loader.ReadAhead(IMAGES, noting, CPU) as found:
        found[0]
        assert third.wait(10), "the next batches are read before they are asked for"
        found[1]
        found[2]
    assert sorted(read) == read and len(set(read)) == len(read), "each once, in order"


def test_a_fault_of_the_thread_is_the_loops():
    def failing(step: int) -> torch.Tensor:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"), loader.ReadAhead(IMAGES, failing, CPU) as found:
        found[0]


def test_the_whole_set_lies_on_the_device_where_it_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "bytes_held", lambda column: 100)
    monkeypatch.setattr(devices, "memory_there", lambda device: 2 * IMAGES.nbytes + 100)
    assert isinstance(loader.batches(IMAGES, rows_of, CPU), loader.Resident)
    monkeypatch.setattr(devices, "memory_there", lambda device: 2 * IMAGES.nbytes + 99)
    with loader.batches(IMAGES, rows_of, CPU) as found:
        assert isinstance(found, loader.ReadAhead)


def test_training_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = Recipe(data="shapes", subset=192, batch_size=64, views=2, epochs=2)
    resident = crlf.pretrain(tiny, out=tmp_path / "resident", device="cpu")
    monkeypatch.setattr(devices, "memory_there", lambda device: 1000)
    ahead = crlf.pretrain(tiny, out=tmp_path / "ahead", device="cpu")
    assert ahead.file(LOSS).read_bytes() == resident.file(LOSS).read_bytes()
    one, other = (run.tensors(ENCODER) for run in (resident, ahead))
    assert all(torch.equal(one[name], other[name]) for name in one)


# Beyond a limit of memory: 160 MB of images, in a process that may hold 140 MB more than it does when crlf is imported.
# RLIMIT_DATA is the limit that is honest here: it counts what a process holds for itself, whether it is touched or not,
# and no pages of a file that are mapped for reading, which the system can forget at any time. (RLIMIT_AS would count
# these, and RLIMIT_RSS does nothing on Linux.)

CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np, torch, torch._dynamo, sklearn.linear_model, pyarrow.parquet
import crlf
from crlf.embedding import embed
from crlf.training import pretrain

def held(name):
    return 1024 * int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

out, path = sys.argv[1:]
limit = held("VmData") + 140_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.fromfile(path, np.uint8)
    sys.exit("the limit did not bite")
except MemoryError:
    pass
before = held("RssAnon")
views, sgd = crlf.augmentation.ViewSettings(resolution=0.125), crlf.optim.OptimSettings(optimizer="sgd")
recipe = crlf.Recipe(data=path, batch_size=64, views=2, epochs=1, augmentation=views, optim=sgd)
run = pretrain.pretrain(recipe, out=out, device="cpu")
class Mean(torch.nn.Module):  # in place of the encoder, which takes a minute on a core for so many images
    out_dim = 3
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def forward(self, x):
        return self.scale * x.mean(dim=(2, 3))

embed.load_encoder = lambda *arguments: crlf.encoders.Frozen(Mean(), mirror=False)
embed.embed(run, device="cpu", batch_size=64)
print(json.dumps({"steps": run.log()[-1]["step"], "grown": held("RssAnon") - before, "loss": run.scores["loss"]}))
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
def test_a_set_larger_than_the_memory_limit(tmp_path: Path):
    path = tmp_path / "large.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (13_000, 3, 64, 64))  # 160 MB
    images[:] = np.random.default_rng(0).integers(0, 256, (13_000, 3, 1, 1), dtype=np.uint8)
    images.flush()
    del images
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / "run"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] == 203 and np.isfinite(found["loss"])
    assert found["grown"] < 140_000_000 < path.stat().st_size
    rows = np.load(tmp_path / "run" / "train_emb.npy")
    by = Run(tmp_path / "run").recipe.normalisation
    assert np.allclose([by.mean, by.std], [[0.5] * 3, [0.29] * 3], atol=0.01)  # measured, of uniform numbers
    assert np.allclose(rows, (np.load(path, mmap_mode="r")[:, :, 0, 0] / 255 - by.mean) / by.std, atol=1e-5)
