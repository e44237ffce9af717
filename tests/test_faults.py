"""The disk fills, a folder is read-only, the clock jumps, the data change under a run: one clear line, and what was
saved stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import terminal
import torch

import crlf
from crlf import encoders
from crlf.data import memmap
from crlf.data.files import arrays, decode_cache, listing
from crlf.embedding import embed
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.run import CHECKPOINT, ENCODER, LOSS
from crlf.training.budget import ByClock
from crlf.visualization.figures import draw
from crlf.visualization.report import report

resource = pytest.importorskip("resource", reason="limits, disks and modes are POSIX's")
ROOT = Path(__file__).parent.parent
TINY = Recipe(data="shapes", subset=96, batch_size=32, views=2, epochs=3, precision="float32")


@pytest.fixture(autouse=True)
def no_trial(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(act: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says) as found:
        act()
    assert "\n" not in str(found.value)


# A disk


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB of its own, where the system lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Take all that is free on the disk, but for so many bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65_536)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - left))
    return filler


@pytest.mark.parametrize("left", [0, 9_000])  # nothing fits, or a line of the log and a part of a checkpoint
def test_a_disk_that_fills_between_two_checkpoints(disk: Path, monkeypatch: pytest.MonkeyPatch, left: int):
    save, fillers = checkpoints.save, []

    def save_and_fill(run: crlf.Run, values: dict) -> None:
        save(run, values)
        if not fillers:
            fillers.append(fill(disk, left))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_fill)
        refused(
            lambda: crlf.pretrain(TINY, out=disk / "run", device="cpu"),
            r"(log\.jsonl|checkpoint\.pt)' cannot be written: No space left on device$",
        )
    run = crlf.Run(disk / "run")
    assert run.tensors(CHECKPOINT)["step"] == 3
    assert not [name for name in contents(run.path) if name.startswith(".")]
    fillers[0].unlink()
    crlf.pretrain(TINY, out=run.path, device="cpu", resume=True)
    alone = crlf.pretrain(TINY, out=disk / "alone", device="cpu")
    ours, theirs = (each.tensors(ENCODER) for each in (alone, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [row["loss"] for row in run.log()] == [row["loss"] for row in alone.log()]


STAGES: dict[str, Callable[[Path], object]] = {
    "embed": lambda out: crlf.embed(out, device="cpu"),
    "probe": lambda out: crlf.probe(out, device="cpu"),
    "draw": draw,
    "report": report,
}


@pytest.fixture(scope="module")
def whole(few_weights: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after all of its stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "cnn", few_weights)
        run = crlf.pretrain(TINY, out=tmp_path_factory.mktemp("whole"), device="cpu")
        for act in STAGES.values():
            act(run.path)
    return run.path


@pytest.fixture
def copied(whole: Path, disk: Path) -> Path:
    """It, on the disk of our own."""
    out = disk / "run"
    out.mkdir()
    for name, data in contents(whole).items():
        (out / name).write_bytes(data)
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk(copied: Path, disk: Path, stage: str):
    before = contents(copied)
    fill(disk)
    refused(lambda: STAGES[stage](copied), "cannot be written: No space left on device")
    assert contents(copied) == before


@pytest.mark.parametrize("stage", [*STAGES, "resume", "overwrite"])
def test_a_read_only_disk(copied: Path, disk: Path, stage: str):
    before = contents(copied)
    mount("-o", "remount,ro", str(disk))
    act = STAGES.get(stage, lambda out: crlf.pretrain(TINY, out=out, device="cpu", **{stage: True}))
    refused(lambda: act(copied), "cannot be written: Read-only file system")
    assert contents(copied) == before
    mount("-o", "remount,rw", str(disk))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_without_leave_to_write(whole: Path, stage: str):
    before = contents(whole)
    whole.chmod(0o555)
    try:
        refused(lambda: STAGES[stage](whole), "cannot be written: Permission denied")
    finally:
        whole.chmod(0o755)
    assert contents(whole) == before


# Of recipe.json, of a checkpoint, of a figure.
@pytest.mark.long
@pytest.mark.parametrize("limit", [1_000, 100_000, 900_000])
def test_a_limit_on_the_size_of_files(tmp_path: Path, limit: int):
    words = ["shapes", "--subset", "96", "--batch-size", "32", "--epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "simclr_train.py"), *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("simclr_train.py: error: ") and last.endswith(" cannot be written: File too large"), last
    assert "Traceback" not in done.stderr
    left = contents(tmp_path / "run")
    assert not [name for name in left if name.startswith(".")]
    for name, data in left.items():
        if name.endswith(".json"):
            json.loads(data)


# The clock


def test_the_time_of_day_plays_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    straight = crlf.pretrain(TINY, out=tmp_path / "straight", device="cpu")
    now, jumps = time.time, iter([0, 10**8, -(10**8)] * 1000)
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    jumping = crlf.pretrain(TINY, out=tmp_path / "jumping", device="cpu")
    assert jumping.file(LOSS).read_bytes() == straight.file(LOSS).read_bytes()
    assert 0 < jumping.scores["train_seconds"] < 60


def test_files_from_the_future_are_files(tmp_path: Path, cache: Path):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8))
    os.utime(path, (4e9, 4e9))
    run = crlf.pretrain(Recipe(data=str(path), batch_size=32, views=2, epochs=1), out=tmp_path / "run", device="cpu")
    crlf.embed(run, device="cpu")


def test_a_machine_that_slept_ends_a_time_budget_with_a_finished_schedule():
    course, step = ByClock(budget=60.0), 0
    for second in range(1, 20):
        step += 10
        course.look(step, float(second))
    assert not course.over(step) and course.share(step) < 0.5
    course.look(step + 10, 3600.0)
    assert course.over(step + 10) and course.share(step + 10) == 1.0


def test_a_machine_that_slept_leaves_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, slept, count = time.perf_counter, [0.0], [0]

    def clock() -> float:
        count[0] += 1
        slept[0] = 3600.0 if count[0] > 100 else 0.0
        return real() + slept[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    recipe = Recipe(data="shapes", subset=96, batch_size=32, views=2, minutes=5.0, precision="float32")
    run = crlf.pretrain(recipe, out=tmp_path, device="cpu")
    assert run.log()[-1]["lr"] >= 0 and run.file(ENCODER).exists() and run.scores["train_seconds"] > 3600


# The data


def saved(path: Path, count: int = 128) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    np.save(path, images)
    return images


def change(path: Path, how: str) -> None:
    if how == "written to":
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"other pixels")
    elif how == "cut short":
        os.truncate(path, 10_000)
    else:
        other = path.with_name("other.npy")
        saved(other, 64)
        os.replace(other, path)
    os.utime(path, (1e9, 1e9))  # on a fast disk two writes can have one time


@pytest.mark.parametrize("how", ["written to", "cut short", "replaced"])
@pytest.mark.parametrize("held", ["in memory", "read ahead"])
def test_an_array_that_changes_while_it_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, held: str
):
    path, out = tmp_path / "images.npy", tmp_path / "run"
    saved(path)
    recipe = Recipe(data=str(path), batch_size=32, views=2, epochs=3, precision="float32")
    save = checkpoints.save

    def save_and_change(run: crlf.Run, values: dict) -> None:
        save(run, values)
        change(path, how)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_change)
        if held == "read ahead":
            patch.setattr("crlf.data.loader.fits", lambda size, device: False)
            patch.setattr("crlf.data.loader.AHEAD", 0)
        refused(lambda: crlf.pretrain(recipe, out=out, device="cpu"), f"^'{path}' was changed while its images were")
    assert crlf.Run(out).tensors(CHECKPOINT)["step"] == 4
    if how != "written to":  # a resumed run looks at a sample of the images only
        refused(lambda: crlf.pretrain(recipe, out=out, device="cpu", resume=True), ".")
    saved(path)
    crlf.pretrain(recipe, out=out, device="cpu", resume=True)


@pytest.mark.parametrize("new", [False, True], ids=["its own images", "new images"])
def test_an_array_that_changes_while_it_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool):
    path, other = tmp_path / "images.npy", tmp_path / "others.npy"
    saved(path)
    saved(other)
    run = crlf.pretrain(
        Recipe(data=str(path), batch_size=32, views=2, epochs=1, precision="float32"),
        out=tmp_path / "run",
        device="cpu",
    )
    before, real = contents(run.path), embed.normalise

    def normalise_and_change(images: torch.Tensor, settings: object) -> torch.Tensor:
        made = real(images, settings)
        change(other if new else path, "cut short")
        return made

    monkeypatch.setattr(embed, "normalise", normalise_and_change)
    words = {"out": tmp_path / "found.parquet"} if new else {}
    refused(
        lambda: crlf.embed(run, *[str(other)] * new, device="cpu", batch_size=32, **words),
        "others.npy' was changed" if new else "images.npy' was changed",
    )
    assert contents(run.path) == before and not (tmp_path / "found.parquet").exists()


def test_a_subset_is_watched_too_and_a_copy_need_not_be(tmp_path: Path):
    path = tmp_path / "images.npy"
    images = saved(path)
    assert arrays.load(path)[0].first(3).mapped == memmap.Mapped.of(path)
    np.save(path, images.transpose(0, 2, 3, 1))
    assert arrays.load(path)[0].mapped is None


def test_a_file_that_goes_while_it_is_looked_for_is_skipped(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(b"x")
    file = listing.look_at("image.png", str(path))
    path.unlink()
    pixels, outcome = decode_cache.look_into(file, 32, 1000)
    assert pixels is None and outcome.skipped == "it cannot be read: No such file or directory"


def test_one_line_and_code_2_on_the_command_line(tmp_path: Path):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((160, 3, 32, 32), np.uint8))
    line = terminal.refused("pretrain", str(path), "--out", str(tmp_path / "run"), "--device", "cpu")
    assert line == f"crlf pretrain: error: images of '{path}' must differ, but all 160 are the same"
    assert not (tmp_path / "run").exists()
