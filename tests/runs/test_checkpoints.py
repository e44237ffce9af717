"""Checkpoints: whole or noticed not to be, the one before kept; and one process at a time in a folder."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import crlf
from crlf import data
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.files import check_zip, save_tensors, write_json
from crlf.runs.run import CHECKPOINT, CHECKPOINT_BEFORE, ENCODER, LOCK, LOSS, RECIPE, SCORES, Run

VALUES = {"step": 3, "weights": torch.arange(500.0), "name": "é"}
TINY = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read(data: bytes) -> dict:
    check_zip(data)
    return torch.load(io.BytesIO(data), weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_every_flipped_bit_is_noticed_or_changes_nothing():
    """Each bit of the directory at the end of the zip file, and one bit of each byte before it."""
    values = {"step": 3, "weights": torch.arange(100.0), "more": torch.ones(4, dtype=torch.bfloat16)}
    data = saved(values)
    directory = zipfile.ZipFile(io.BytesIO(data)).start_dir
    noticed = 0
    for bit in [*(8 * byte + byte % 8 for byte in range(directory)), *range(8 * directory, 8 * len(data))]:
        try:
            assert same(read(flipped(data, bit)), values), bit
        except AssertionError:
            raise
        except Exception:  # zipfile and torch raise many kinds
            noticed += 1
    assert noticed > 4000


def test_every_cut_is_noticed():
    data = saved(VALUES)
    for cut in [0, 10, *random.Random(0).sample(range(len(data)), 100)]:
        with pytest.raises(zipfile.BadZipFile):
            check_zip(data[:cut])


def test_torch_takes_a_flipped_bit_for_another_weight_and_a_folder_for_a_tensor():
    """Why there is `check_zip`."""
    data = saved(VALUES)
    bit = 8 * (data.find(VALUES["weights"].numpy().tobytes()) + 4 * 100 + 3) + 6
    weights = torch.load(io.BytesIO(flipped(data, bit)), weights_only=True)["weights"]
    assert (weights != VALUES["weights"]).sum() == 1
    attributes = data.rfind(b"archive/data/0") - 8  # in the directory
    assert zipfile.ZipFile(io.BytesIO(flipped(data, 8 * attributes + 4))).testzip() is None
    with pytest.raises(ValueError, match="its checksum is wrong"):
        check_zip(flipped(data, 8 * attributes + 4))


def test_a_file_that_an_earlier_version_sealed_is_read():
    """With a comment at its end."""
    buffer = io.BytesIO(saved(VALUES))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * 64
    assert same({**read(buffer.getvalue()), "name": 0}, {**VALUES, "name": 0})


def flip(path: Path) -> None:
    """A bit in the middle, among the weights."""
    data = path.read_bytes()
    path.write_bytes(flipped(data, 4 * len(data)))


def test_the_last_two_are_kept(tmp_path: Path):
    run = Run(tmp_path)
    assert not checkpoints.kept(run)
    for step in range(4):
        checkpoints.save(run, VALUES | {"step": step})
    assert checkpoints.load(run)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-before.pt", "checkpoint.pt"]


@pytest.mark.parametrize("fault", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys, fault: str):
    run = Run(tmp_path)
    for step in (1, 2):
        checkpoints.save(run, VALUES | {"step": step})
    path = run.file(CHECKPOINT)
    if fault == "flipped":
        flip(path)
    elif fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if fault == "empty" else -200])
    assert checkpoints.kept(run) and checkpoints.load(run)["step"] == 1
    said = capsys.readouterr().err
    assert said.startswith(f"warning: '{path}' is ") and said.endswith("; using the previous one\n")
    flip(run.file(CHECKPOINT_BEFORE))
    with pytest.raises(InputError, match=r"checkpoint\.pt' is (damaged|missing)"):
        checkpoints.load(run)


def test_a_flipped_bit_of_the_encoder_is_noticed(tmp_path: Path):
    run = Run(tmp_path)
    save_tensors(run.file(ENCODER), VALUES)
    flip(run.file(ENCODER))
    with pytest.raises(InputError, match=r"damaged or holds more than tensors: its checksum is wrong$"):
        run.tensors(ENCODER)


def test_a_run_goes_on_from_the_checkpoint_before_and_ends_the_same(tmp_path: Path, capsys):
    recipe = dataclasses.replace(TINY, epochs=3)
    straight = crlf.pretrain(recipe, out=tmp_path / "straight", device="cpu")
    run = crlf.pretrain(recipe, out=tmp_path / "damaged", device="cpu")
    for name in (ENCODER, LOSS):
        run.file(name).unlink()
    flip(run.file(CHECKPOINT))
    resumed = crlf.pretrain(recipe, out=tmp_path / "damaged", device="cpu", resume=True)
    assert "warning" in capsys.readouterr().err
    ours, theirs = (each.tensors(ENCODER) for each in (straight, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (straight.array(LOSS) == resumed.array(LOSS)).all()
    assert [row["step"] for row in straight.log()] == [row["step"] for row in resumed.log()]


def test_a_run_goes_on_only_with_the_images_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    crlf.pretrain(TINY, out=tmp_path, device="cpu")
    train, test = data.load("shapes")
    pixels = train.images.clone()
    pixels[:64] = 255 - pixels[:64]
    renamed = tuple(f"other/{name}" for name in train.ids)
    for changed in (
        data.ImageSet(pixels, train.labels, train.classes, train.ids),
        data.ImageSet(train.images, train.labels, train.classes, renamed),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(data.SOURCES, "shapes", lambda data_dir, changed=changed: (changed, test))
            with pytest.raises(InputError, match=r"^the images of 'shapes' are not those that the checkpoint"):
                crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path):
    run = crlf.pretrain(TINY, out=tmp_path, device="cpu")
    recipe = run.settings
    del recipe["micro_batch"]
    write_json(run.file(RECIPE), recipe)
    values = run.tensors(CHECKPOINT)
    del values["recipe"]["micro_batch"], values["fingerprint"]
    save_tensors(run.file(CHECKPOINT), values)
    crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    with pytest.raises(InputError, match=r"^micro_batch is 16, but the run to resume in '.*' has 0$"):
        crlf.pretrain(dataclasses.replace(TINY, micro_batch=16), out=tmp_path, device="cpu", resume=True)


LOCKING = """
import sys, crlf
run = crlf.Run(sys.argv[1])
run.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_train_into_one_folder(tmp_path: Path):
    crlf.pretrain(TINY, out=tmp_path, device="cpu")
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=f"^another process is training into the output folder '{tmp_path}'$"):
                crlf.pretrain(TINY, out=tmp_path, device="cpu", **how)
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other.kill()  # a lock ends with its process
    crlf.pretrain(TINY, out=tmp_path, device="cpu", overwrite=True)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_is_let_go_after_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("crlf.training.pretrain.train", fail)
        crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert not (tmp_path / LOCK).exists()
    crlf.pretrain(TINY, out=tmp_path, device="cpu", overwrite=True)


def test_a_run_that_is_gone_locks_nothing(tmp_path: Path):
    Run(tmp_path).lock()
    Run(tmp_path).lock()
    held = Run(tmp_path)
    held.lock()
    with pytest.raises(InputError, match="another process is training"):
        Run(tmp_path).lock()


def test_a_locked_run_travels_between_processes_without_its_lock(tmp_path: Path):
    run = Run(tmp_path)
    run.lock()
    assert pickle.loads(pickle.dumps(run)).path == tmp_path
    run.release()
    run.release()  # once more does nothing


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path):
    run = crlf.pretrain(TINY, out=tmp_path, device="cpu")
    left = [run.file(f".{name}.abc123") for name in (CHECKPOINT, SCORES)]
    own = run.file(".notes")
    for path in (*left, own):
        path.write_text("half")
    crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    assert not any(path.exists() for path in left) and own.exists()


def test_protocols_of_several_stages_are_kept_beside_each_other(tmp_path: Path):
    run = Run(tmp_path)
    run.update_scores(epochs=3, protocol={"embedding": "a", "linear": "old"})
    run.update_scores(chance=0.1, protocol={"linear": "new"})
    assert run.scores == {"epochs": 3, "chance": 0.1, "protocol": {"embedding": "a", "linear": "new"}}


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a loss of power could leave an empty file under the name of a whole one."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(f"to {Path(b).name}") or replace(a, b))
    checkpoints.save(Run(tmp_path), VALUES)
    assert done == ["sync", "to checkpoint.pt", "sync"]
    checkpoints.save(Run(tmp_path), VALUES)
    assert done[3:] == ["sync", "to checkpoint-before.pt", "to checkpoint.pt", "sync"]
