"""The loop: the same bits from the same seed and after a resume, faults that end in one line, and learning."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small_methods
import torch
from sampling import some

import crlf
from crlf import data
from crlf.data.loader import epoch_order
from crlf.embedding.embed import embed_images, load_encoder
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import training_flops
from crlf.methods.byol import BYOL, BYOLSettings
from crlf.optim import OptimSettings, schedule
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.files import save_tensors
from crlf.runs.run import CHECKPOINT, ENCODER
from crlf.runtime.interrupts import Interrupted
from crlf.training import budget
from crlf.training.loop import stream_of
from crlf.training.progress import Progress
from crlf.training.state import State

TINY = Recipe(
    data="shapes", subset=192, batch_size=64, epochs=2, normalisation=data.PUBLISHED["shapes"]
)  # three steps an epoch
pytestmark = pytest.mark.usefixtures("all_narrow")


def weights(run: crlf.Run) -> dict[str, torch.Tensor]:
    return run.tensors(ENCODER)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(all_narrow: None, tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    """A run from start to end, which the others are held against."""
    return crlf.pretrain(TINY, out=tmp_path_factory.mktemp("straight"), device="cpu")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act, method: str = "simclr") -> None:
    """Let `act(loss)` replace the loss of one step, counted from 0 in this process."""
    kind, count = METHODS[method], [0]
    original = kind.loss

    def planted(self, *projections, **labels):
        loss, stats = original(self, *projections, **labels)
        count[0] += 1
        return (act(loss) if count[0] == step + 1 else loss), stats

    monkeypatch.setattr(kind, "loss", planted)
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)  # its trial is not counted


def interrupt(loss: torch.Tensor, number: int = signal.SIGINT) -> torch.Tensor:
    os.kill(os.getpid(), number)
    return loss


def test_the_run_folder_holds_what_the_design_names(straight: crlf.Run):
    loss = straight.array("loss.npy")
    assert loss.dtype == np.float64 and loss.shape == (2,) and np.isfinite(loss).all()
    assert straight.recipe == TINY
    assert all(not tensor.requires_grad and tensor.device.type == "cpu" for tensor in weights(straight).values())
    log = straight.log()
    assert log[-1]["step"] == 6 and log[-1]["epoch"] == 2
    shown, first = straight.array("views.npy"), data.load("shapes")[0].images[:10].float()
    assert shown.shape == (10, 1 + TINY.views, 3, 24, 24)
    original = torch.nn.functional.interpolate(first, (24, 24), mode="bilinear", antialias=True)
    assert np.abs(shown[:, 0] - original.numpy()).max() < 1 < np.abs(shown[:, 1] - original.numpy()).max()
    scores = straight.scores
    assert scores["views_seen"] == 6 * 64 * TINY.views and scores["epochs"] == 2 and scores["seed"] == 0
    assert scores["method"] == "simclr" and scores["encoder"] == "cnn" and scores["device"].startswith("cpu")
    assert scores["images_per_second"] == pytest.approx(6 * 64 / scores["train_seconds"])
    method = State(TINY, data.load("shapes")[0].first(192), torch.device("cpu")).method
    assert scores["pflop"] == pytest.approx(scores["views_seen"] * training_flops(method, 4, 3, 24, 24) / 1e15)


def test_the_same_seed_gives_the_same_bits(straight: crlf.Run, tmp_path: Path):
    torch.manual_seed(99)  # the state of the global generator must not matter
    again = crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert again.file("loss.npy").read_bytes() == straight.file("loss.npy").read_bytes()
    assert same_bits(weights(again), weights(straight))


def test_another_seed_gives_another_run(straight: crlf.Run, tmp_path: Path):
    other = crlf.pretrain(dataclasses.replace(TINY, seed=1), out=tmp_path, device="cpu")
    assert not np.allclose(other.array("loss.npy"), straight.array("loss.npy"), atol=1e-4)


def test_training_leaves_the_global_generator_alone(tmp_path: Path):
    before = torch.random.get_rng_state()
    crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_labels_play_no_part(straight: crlf.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without them, and with others, the same bits come of it; what the kNN tells, which is given them, changes."""
    train, test = data.load("shapes")
    accuracies = [[row["knn_accuracy"] for row in straight.log() if "knn_accuracy" in row]]
    shuffled = train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    for name, labels in (("none", None), ("shuffled", shuffled)):
        other = data.ImageSet(train.images, labels, train.classes, train.ids)
        monkeypatch.setitem(data.SOURCES, "shapes", lambda data_dir, other=other: (other, test))
        run = crlf.pretrain(TINY, out=tmp_path / name, device="cpu")
        for file in (ENCODER, "loss.npy", "views.npy"):
            assert run.file(file).read_bytes() == straight.file(file).read_bytes(), (name, file)
        assert same_bits(run.tensors(CHECKPOINT)["method"], straight.tensors(CHECKPOINT)["method"])
        accuracies.append([row["knn_accuracy"] for row in run.log() if "knn_accuracy" in row])
    assert accuracies[0] and not accuracies[1] and accuracies[2] and accuracies[0] != accuracies[2]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize("step", some([1, 2, 4], [4]))
def test_a_resumed_run_equals_a_straight_one(straight, tmp_path, monkeypatch, step: int, number: int, code: int):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda loss: interrupt(loss, number))
        with pytest.raises(Interrupted, match=f"after step {step + 1} of 6") as stopped:
            crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert stopped.value.exit_code == code
    assert not (tmp_path / ENCODER).exists()
    run = crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    assert run.file("loss.npy").read_bytes() == straight.file("loss.npy").read_bytes()
    assert same_bits(weights(run), weights(straight))
    steps = [row["step"] for row in run.log()]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_each_row_of_the_log_is_of_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its loss is the mean since the row before, and its rate that of its last step, at the step's middle."""
    told: list[float] = []
    at_step(monkeypatch, 99, lambda loss: loss)
    original = METHODS["simclr"].loss

    def noting(self, *projections):
        loss, stats = original(self, *projections)
        told.append(loss.item())
        return loss, stats

    monkeypatch.setattr(METHODS["simclr"], "loss", noting)
    monkeypatch.setattr(budget, "LOG_EVERY", 2)
    recipe = dataclasses.replace(TINY, optim=OptimSettings(warmup=0.5))
    run = crlf.pretrain(recipe, out=tmp_path, device="cpu")
    rows, told = run.log(), told[:6]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    means = [np.mean(told[:2]), told[2], told[3], np.mean(told[4:6])]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-5)
    assert run.array("loss.npy") == pytest.approx([np.mean(told[:3]), np.mean(told[3:])], rel=1e-5)
    lrs = [recipe.optim.lr * schedule((row["step"] - 0.5) / 6, 0.5) for row in rows]
    assert [row["lr"] for row in rows] == pytest.approx(lrs)


def test_every_step_and_every_seed_has_views_of_its_own(straight: crlf.Run):
    state = State(TINY, data.load("shapes")[0].first(192), torch.device("cpu"))
    numbers = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        state.step = step
        numbers.append(torch.rand(8, generator=stream_of(dataclasses.replace(TINY, seed=seed), state)))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(numbers, 2))


def test_a_stop_saves_at_once_and_an_epoch_only_where_that_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each checkpoint takes a minute here: after the first one only a stop, or the end, is worth another."""
    saved: list[int] = []
    clock = itertools.count(0, 60)
    monkeypatch.setattr("crlf.training.state.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(checkpoints, "save", lambda run, values: saved.append(values["step"]))
    state = State(TINY, data.load("shapes")[0].first(192), torch.device("cpu"))
    for step, at_once in ((3, False), (6, False), (7, True), (9, False)):
        state.step = step
        state.save(crlf.Run(tmp_path), at_once)
    assert saved == [3, 7]
    monkeypatch.undo()
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(State, "save", lambda self, run, at_once, kept: told.append((self.step, at_once)))
    at_step(monkeypatch, 4, interrupt)
    with pytest.raises(Interrupted):
        crlf.pretrain(TINY, out=tmp_path / "run", device="cpu")
    assert told == [(3, False), (5, True)]


def test_a_resumed_log_goes_on_behind_its_checkpoint(tmp_path: Path):
    """A process that was killed had logged more than it had saved."""
    run = crlf.Run(tmp_path)
    run.file("log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)))
    with Progress(run, budget.BySteps(6), 3, 64, 3, lambda row: None) as progress:
        assert [row["step"] for row in run.log()] == [1, 2, 3]
        progress.log(4, torch.tensor([2.0]), 1.0, 0.1, {})
    assert [row["step"] for row in run.log()] == [1, 2, 3, 4]


def test_seconds_go_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        at_step(patch, 3, interrupt)
        with pytest.raises(Interrupted):
            crlf.pretrain(TINY, out=tmp_path, device="cpu")
    run = crlf.Run(tmp_path)
    save_tensors(run.file(CHECKPOINT), run.tensors(CHECKPOINT) | {"seconds": 5000.0})
    crlf.pretrain(TINY, out=tmp_path, device="cpu", resume=True)
    assert 5000 < run.scores["train_seconds"] < 5100
    assert all(5000 < row["seconds"] < 5100 for row in run.log() if row["step"] > 4)


def test_the_method_is_told_after_each_step_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A target that follows the weights without momentum is, in the end, the weights."""
    told: list[float] = []
    follow = BYOL.after_step

    def noting(self: BYOL, progress: float) -> None:
        told.append(progress)
        follow(self, progress)

    monkeypatch.setattr(BYOL, "after_step", noting)
    head = BYOLSettings(hidden=16, projection=8, target_momentum=0.0, target_momentum_end=0.0)
    run = crlf.pretrain(dataclasses.replace(TINY, method="byol", head=head, views=2), out=tmp_path, device="cpu")
    assert told == pytest.approx([step / 6 for step in range(1, 7)])
    method = run.tensors(CHECKPOINT)["method"]
    ours = {name.removeprefix("encoder."): value for name, value in method.items() if name.startswith("encoder.")}
    weights = [name for name in ours if f"target.networks.0.{name}" in method and "running" not in name]
    assert len(weights) > 8
    assert all(torch.equal(ours[name], method[f"target.networks.0.{name}"]) for name in weights if "num_" not in name)


@pytest.mark.parametrize("method", ["mocov2", "dino", "nnclr", "supcon"])
def test_targets_queues_centres_and_labels_survive_a_resume(tmp_path, monkeypatch, method: str):
    """A queue is of two batches, so that it goes round."""
    recipe = dataclasses.replace(TINY, method=method, head=small_methods.narrow(method, 128), views=2)
    straight = crlf.pretrain(recipe, out=tmp_path / "straight", device="cpu")
    with monkeypatch.context() as patch:
        at_step(patch, 3, interrupt, method)
        with pytest.raises(Interrupted, match="after step 4 of 6"):
            crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu", resume=True)
    assert run.file("loss.npy").read_bytes() == straight.file("loss.npy").read_bytes()
    assert same_bits(weights(run), weights(straight))


def test_resuming_a_finished_run_changes_nothing(straight: crlf.Run, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(straight.path, copy)
    assert same_bits(weights(crlf.pretrain(TINY, out=copy, device="cpu", resume=True)), weights(straight))


def test_handlers_are_put_back(tmp_path: Path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, value: float):
    at_step(monkeypatch, 4, lambda loss: loss * value)
    with pytest.raises(InputError, match=r"loss of step 5 is (nan|inf): likely the learning rate") as stopped:
        crlf.pretrain(TINY, out=tmp_path, device="cpu")
    assert "\n" not in str(stopped.value)
    saved = crlf.Run(tmp_path).tensors(CHECKPOINT)
    assert saved["step"] == 3 and all(v.isfinite().all() for v in saved["method"].values())


def test_each_epoch_is_a_permutation_of_its_own():
    first, second = epoch_order(0, 0, 100), epoch_order(0, 1, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch_order(1, 0, 100))


# Folders and settings that are refused, with nothing lost.


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(match: str, **arguments) -> None:
    with pytest.raises(InputError, match=match) as caught:
        crlf.pretrain(**{"recipe": TINY, "device": "cpu"} | arguments)
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_run_is_not_touched_unasked(straight: crlf.Run):
    before = files(straight.path)
    refused("holds another run: --resume continues it, --overwrite replaces it", out=straight.path)
    assert files(straight.path) == before


def test_the_folder_is_looked_at_before_the_images(straight: crlf.Run, tmp_path: Path, monkeypatch):
    """Decoding them may take minutes."""
    monkeypatch.setattr("crlf.training.prepare.with_images", lambda *arguments: pytest.fail("the images were loaded"))
    refused("holds another run", out=straight.path)
    refused("holds no run to resume", out=tmp_path, resume=True)
    refused("cannot be combined", out=straight.path, resume=True, overwrite=True)


def test_resume_with_other_settings_names_them(straight: crlf.Run):
    before = files(straight.path)
    other = Recipe(data="shapes", subset=192, batch_size=64, epochs=3)
    refused("epochs is 3, but the run to resume in .* has 2", recipe=other, out=straight.path, resume=True)
    assert files(straight.path) == before


def test_resume_and_overwrite_exclude_each_other(straight: crlf.Run):
    refused("cannot be combined", out=straight.path, resume=True, overwrite=True)


def test_resume_auto_starts_a_run_then_continues_it(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda loss: interrupt(loss, signal.SIGTERM))
        with pytest.raises(Interrupted):
            crlf.pretrain(TINY, out=tmp_path / "run", device="cpu", resume="auto")
    assert (tmp_path / "run" / CHECKPOINT).exists()
    seen: list[int] = []
    at_step(monkeypatch, 0, lambda loss: seen.append(1) or interrupt(loss))  # the sixth step: the last
    with pytest.raises(Interrupted, match="after step 6 of 6"):
        crlf.pretrain(TINY, out=tmp_path / "run", device="cpu", resume="auto")
    run = crlf.pretrain(TINY, out=tmp_path / "run", device="cpu", resume="auto")
    assert seen == [1] and same_bits(weights(run), weights(straight))
    refused("cannot be combined", out=tmp_path / "run", resume="auto", overwrite=True)


def test_nothing_to_resume(tmp_path: Path):
    refused("holds no run to resume", out=tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_overwrite_removes_the_run_and_nothing_else(straight: crlf.Run, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(straight.path, copy)
    (copy / "notes.txt").write_text("mine")
    (copy / "train_emb.npy").write_bytes(b"stale")
    events = copy / "tensorboard" / "events.out.tfevents.1700000000.host.1.0"
    events.parent.mkdir()
    events.write_bytes(b"of the run before"), (events.parent / "notes.txt").write_text("mine")
    crlf.pretrain(TINY, out=copy, device="cpu", overwrite=True)
    assert [path.name for path in events.parent.iterdir()] == ["notes.txt"]  # its curves would lie over the new ones
    assert (copy / "notes.txt").read_text() == "mine" and not (copy / "train_emb.npy").exists()


def test_an_output_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    refused("cannot be written", out=tmp_path / "file" / "run")
    refused("cannot be written", out=tmp_path / "file")


def test_a_full_disk_is_noticed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    refused("its disk has 0 MB free", out=tmp_path)
    assert files(tmp_path) == {}


def test_a_disk_that_fills_while_it_runs_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, count = os.fsync, [0]

    def full(descriptor: int) -> None:
        count[0] += 1
        if count[0] > 8:  # recipe, views, log, and the first epoch's checkpoint fit, each with its folder
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    refused("checkpoint.pt' cannot be written: No space left on device", out=tmp_path)
    assert crlf.Run(tmp_path).tensors(CHECKPOINT)["step"] == 3
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]  # no half-written file


def test_a_batch_larger_than_the_data_set(tmp_path: Path):
    big = Recipe(data="shapes", subset=100, batch_size=128)
    refused("batch_size must be at most the 100 training images, not 128", recipe=big, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def copy(straight: crlf.Run, tmp_path: Path) -> Path:
    """A run with one checkpoint: the one before it would be taken in its place."""
    shutil.copytree(straight.path, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint-before.pt").unlink()
    return tmp_path / "copy"


def test_a_damaged_checkpoint_is_refused(copy: Path):
    whole = (copy / "checkpoint.pt").read_bytes()
    (copy / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    refused("checkpoint.pt' is damaged", out=copy, resume=True)


def test_a_checkpoint_of_something_else_is_refused(copy: Path):
    whole = torch.load(copy / "checkpoint.pt", weights_only=True)
    for spoiled in ({"step": 3}, [1, 2], whole | {"method": {}}, whole | {"optimizers": []}, whole | {"losses": 0}):
        torch.save(spoiled, copy / "checkpoint.pt")
        refused("is damaged", out=copy, resume=True)


def test_a_checkpoint_runs_no_code(copy: Path, tmp_path: Path):
    torch.save({"step": Hostile(tmp_path / "owned")}, copy / "checkpoint.pt")
    refused("checkpoint.pt' is damaged or holds more than tensors", out=copy, resume=True)
    assert not (tmp_path / "owned").exists()


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_unknown_device():
    refused("Did you mean 'cuda'", device="cdua")
    if not torch.cuda.is_available():
        refused("device 'cuda' is not on this machine: torch .* finds", device="cuda")


# Embeddings.


@pytest.fixture(scope="module")
def embedded(straight: crlf.Run) -> crlf.Run:
    return crlf.embed(straight, device="cpu")


def test_embeddings_are_float32_rows_with_their_labels(embedded: crlf.Run):
    train, _ = data.load("shapes")
    rows = embedded.array("train_emb.npy")
    assert rows.dtype == np.float32 and rows.shape == (192, 4 * 16)
    labels = embedded.array("train_lbl.npy")
    assert labels.dtype == np.int64 and labels.tolist() == train.labels[:192].tolist()
    assert json.loads(embedded.file("classes.json").read_text()) == list(train.classes)


def test_row_i_is_image_i_whatever_stands_beside_it(embedded: crlf.Run):
    images = data.load("shapes")[0].images[:192]
    encoder = load_encoder(embedded, TINY, images.shape[1:])
    rows = embedded.array("train_emb.npy")
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    shuffled = embed_images(encoder, images[order], TINY.normalisation, batch_size=50)
    np.testing.assert_allclose(shuffled, rows[order.numpy()], atol=1e-5)
    alone = embed_images(encoder, images[7:8], TINY.normalisation)
    np.testing.assert_allclose(alone[0], rows[7], atol=1e-5)
    distance = torch.cdist(torch.from_numpy(rows), torch.from_numpy(rows)).numpy() + 1e9 * np.eye(192)
    assert distance.min() > 1e-3  # so that a swapped row would have shown


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_embedding_changes_no_weight_and_no_statistic(name: str):
    encoder = crlf.encoders.build(name, 3, 32, 2)
    encoder(torch.randn(8, 3, 32, 32))  # statistics that are not the initial ones
    frozen = crlf.encoders.Frozen(encoder, mirror=True)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    embed_images(frozen, images, TINY.normalisation, batch_size=8)
    assert same_bits(before, encoder.state_dict())
    assert all(p.grad is None for p in encoder.parameters())


def test_embedding_in_training_mode_is_refused():
    encoder = crlf.encoders.build("cnn", 3, 32)
    with pytest.raises(AssertionError, match="evaluation mode"):
        embed_images(encoder.train(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TINY.normalisation)


def test_embed_twice_gives_the_same_bits(embedded: crlf.Run):
    before = embedded.file("test_emb.npy").read_bytes()
    crlf.embed(embedded, device="cpu")
    assert embedded.file("test_emb.npy").read_bytes() == before


def test_embed_without_a_run(tmp_path: Path):
    with pytest.raises(InputError, match="holds no run"):
        crlf.embed(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        crlf.embed(tmp_path / "nowhere")


@pytest.mark.parametrize("minutes", some([0.05, 0.1]))
def test_a_time_budget_ends_on_time_with_a_finished_encoder(tmp_path: Path, minutes: float):
    recipe = dataclasses.replace(TINY, minutes=minutes)
    start = time.perf_counter()
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    assert time.perf_counter() - start == pytest.approx(60 * minutes, abs=1)
    scores, log = run.scores, run.log()
    assert scores["train_seconds"] < 60 * minutes + 0.5
    assert scores["epochs"] == pytest.approx(log[-1]["step"] / 3, abs=0.01)
    assert len(run.array("loss.npy")) == -(-log[-1]["step"] // 3)
    assert log[-1]["lr"] < 0.1 * max(row["lr"] for row in log)
    again = crlf.pretrain(recipe, out=run.path, device="cpu", resume=True)  # a finished one stays as it is
    assert again.log()[-1]["step"] == log[-1]["step"] and again.scores["epochs"] == scores["epochs"]
