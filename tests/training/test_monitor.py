"""What watches a run changes nothing of it; runs that collapse are named, sound ones are not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from gratings import NORMALISATION, VIEWS, gradient_to_both_sides, gratings, moderate, no_predictor
from sampling import some
from small_methods import EVERY, LABELS, small, views_of
from tiny_run import numbers
from torch import Tensor, nn

import crlf
from crlf import cli
from crlf.augmentation import Views
from crlf.data import SOURCES, ImageSet
from crlf.encoders import CNN, ENCODERS
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import Method, loss_of, mlp
from crlf.metrics import geometry
from crlf.optim import OptimSettings
from crlf.recipe import Recipe
from crlf.runs.run import CHECKPOINT, ENCODER
from crlf.training import monitor

TINY = Recipe(data="shapes", subset=192, batch_size=64, views=2, epochs=2)  # three steps an epoch


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradients_length():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    a.grad = torch.tensor([3.0, 4.0])
    assert monitor.gradient_norm([a, b]).item() == 5
    b.grad = torch.tensor([12.0, 0, 0])
    assert monitor.gradient_norm([a, b]).item() == 13


# Measuring a method


IMAGES = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def measured(method: Method, seed: int = 1, batch: int = 24) -> dict[str, float]:
    return monitor.measure(method, IMAGES, Views(VIEWS, NORMALISATION), torch.Generator().manual_seed(seed), batch)


@EVERY
def test_measuring_changes_nothing(name: str):
    method = small(name)
    method.encoder.stages[0].eval()  # a mode that is not its parent's
    loss_of(method, views_of(), LABELS)[0].backward()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    modes, random = [m.training for m in method.modules()], torch.random.get_rng_state()
    found = measured(method)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    assert {key[0] for key in found} == ({"h"} if name == "diet" else {"h", "z"})  # diet has no projector
    assert all(torch.equal(state[key], value) for key, value in method.state_dict().items())
    assert all(torch.equal(gradients[n], p.grad) for n, p in method.named_parameters() if p.grad is not None)
    assert modes == [m.training for m in method.modules()] and torch.equal(random, torch.random.get_rng_state())


def test_the_same_stream_gives_the_same_numbers():
    method = small("simclr")
    assert measured(method) == measured(method) != measured(method, seed=2)


def test_features_are_two_views_of_each_image_and_no_more_than_a_batch_at_a_time():
    method, seen = small("byol"), []
    method.encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))

    def same(images: Tensor, stream: torch.Generator, count: int) -> Tensor:
        views = images.float().repeat(count, 1, 1, 1) / 255
        return views + torch.arange(len(views))[:, None, None, None]

    pairs = monitor.embed_pairs(method, IMAGES, same, torch.Generator(), 10)
    assert seen == [20, 20, 8] and pairs["h"].shape[:2] == pairs["z"].shape[:2] == (2, 24)
    with torch.no_grad(), monitor.evaluating(method):
        for view, place in ((0, 3), (1, 13)):  # of image 3, in a batch of 10 and their second views
            expected = method.encoder(IMAGES[3:4].float() / 255 + place)
            torch.testing.assert_close(pairs["h"][view, 3], expected[0])
            torch.testing.assert_close(pairs["z"][view, 3], method.projector(expected)[0])


def test_a_method_without_a_projector_has_no_z():
    method = small("simclr")
    del method.projector
    assert {key[0] for key in measured(method)} == {"h"}


# Collapse


class Spoiled(nn.Module):
    """The light CNN, its embedding made worthless."""

    def __init__(self, kind: str):
        super().__init__()
        self.net, self.kind = CNN(3, 1, (8, 16, 32), read=2), kind
        self.out_dim = self.net.out_dim

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        if self.kind == "constant":
            return 0 * h + 1
        if self.kind == "dead":
            return torch.cat([h[:, :4], 0 * h[:, 4:] + 1], dim=1)
        return torch.cat([1000 * h[:, :1], h[:, 1:]], dim=1)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    sets = gratings(768, seed=0), gratings(64, seed=1)
    monkeypatch.setitem(SOURCES, "gratings", lambda data_dir: sets)
    monkeypatch.setitem(ENCODERS, "tiny", lambda channels, size, regions: CNN(channels, regions, (8, 16, 32), read=2))
    for kind in ("constant", "dead", "dominant"):
        monkeypatch.setitem(ENCODERS, kind, lambda channels, size, regions, kind=kind: Spoiled(kind))
    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    monkeypatch.setattr(monitor, "SHARE", math.inf)  # a look each epoch
    return sets[0]


@pytest.mark.parametrize("name", some(METHODS, ["simclr", "byol"]))
def test_healthy_runs_are_not_accused(name: str, tables: ImageSet, tmp_path, capsys: pytest.CaptureFixture[str]):
    """Every epoch from step 60 to 96 is judged."""
    recipe = Recipe(
        method=name, data="gratings", encoder="tiny", batch_size=64, views=2, epochs=8,
        augmentation=VIEWS, optim=OptimSettings(lr=0.03), head=moderate(name), stop_on_collapse=True,
    )  # fmt: skip
    rows = [row for row in crlf.pretrain(recipe, out=tmp_path, device="cpu").log() if "h_rankme" in row]
    assert [row["step"] for row in rows] == [12 * epoch for epoch in range(1, 9)]
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert rows[-1]["h_agreement"] > rows[0]["h_agreement"] or rows[-1]["z_agreement"] > rows[0]["z_agreement"]
    assert "collapse" not in capsys.readouterr().err


@pytest.mark.parametrize("name", some(["simsiam", "byol"]))
@pytest.mark.parametrize("spoil", [None, no_predictor, gradient_to_both_sides])
def test_a_method_without_its_guard_is_caught(name: str, spoil, tables: ImageSet, monkeypatch: pytest.MonkeyPatch):
    """After 72 steps; some seeds take more. SimSiam has no last batch norm: see test_method_learning.py."""
    torch.manual_seed(1)
    method = METHODS[name](CNN(3, 1, (8, 16, 32), read=2), moderate(name)).train()
    if name == "simsiam":
        method.projector = mlp([method.encoder.out_dim, 32, 32], bias=False)
    if spoil:
        spoil(method, monkeypatch)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for step in range(72):
        g = torch.Generator().manual_seed(step)
        batch = tables.images[torch.randint(768, (64,), generator=g)]
        optimizer.zero_grad()
        method(Views(VIEWS, NORMALISATION)(batch, g, 2).chunk(2))[0].backward()
        optimizer.step()
        method.after_step(step / 72)
    found = geometry.diagnose(
        monitor.measure(method, tables.images[:256], Views(VIEWS, NORMALISATION), torch.Generator().manual_seed(1))
    )
    assert (found is not None) == (spoil is not None), found


def spoiled(kind: str, **other) -> Recipe:
    return Recipe(data="gratings", encoder=kind, batch_size=64, views=2, epochs=5, augmentation=VIEWS, **other)


@pytest.mark.parametrize(
    "kind, gist", some([("dominant", "every"), ("dead", "dead"), ("constant", "same projection")], 2)
)
def test_a_run_that_collapses_is_warned_of_once(kind: str, gist: str, tables: ImageSet, tmp_path, capsys):
    run = crlf.pretrain(spoiled(kind), out=tmp_path, device="cpu")  # judged after 60 steps
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: collapse: ")]
    assert len(lines) == 1 and gist in lines[0]
    assert run.file(ENCODER).exists()


def test_a_collapse_is_named_within_an_epoch_and_only_once(tables: ImageSet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "SETTLED", 10)
    crlf.pretrain(spoiled("constant", subset=0), out=tmp_path, device="cpu")
    lines = capsys.readouterr().err.splitlines()
    words = [line.split()[0] for line in lines]
    assert words.index("warning:") < words.index("epoch")  # before the first epoch's own line
    assert sum("collapse" in line for line in lines) == 1


def test_stop_on_collapse_ends_the_run_and_keeps_the_checkpoint(tables: ImageSet, tmp_path, capsys):
    recipe = spoiled("constant", stop_on_collapse=True)
    with pytest.raises(InputError, match=r"^collapse: .*; try .*; training stopped, the checkpoint is in ") as stopped:
        crlf.pretrain(recipe, out=tmp_path, device="cpu")
    assert "\n" not in str(stopped.value) and "warning" not in capsys.readouterr().err
    run = crlf.Run(tmp_path)
    assert run.tensors(CHECKPOINT)["step"] == 60 and not run.file(ENCODER).exists()
    assert run.log()[-1]["step"] == 60 and run.log()[-1]["z_spread"] < 0.1


def test_it_is_a_flag_and_off_by_default():
    found = []

    def stage(recipe: Recipe = Recipe(), *, out: str = "x", resume: bool = False) -> None:  # noqa: B008
        found.append(recipe.stop_on_collapse)

    assert cli.command_line(stage, [], "stage") == cli.command_line(stage, ["--stop-on-collapse"], "stage") == 0
    assert found == [False, True]


# In the loop


def test_looking_changes_no_bit_of_the_training(tmp_path, narrow: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(monitor, "SHARE", math.inf)
    looked = crlf.pretrain(TINY, out=tmp_path / "looked", device="cpu")
    assert sum("h_rankme" in row for row in looked.log()) == 2
    monkeypatch.setattr(monitor.Watch, "look", lambda self, method, step, seconds, progress=None: {})
    blind = crlf.pretrain(TINY, out=tmp_path / "blind", device="cpu")
    assert not any("h_rankme" in row for row in blind.log())
    assert looked.file("loss.npy").read_bytes() == blind.file("loss.npy").read_bytes()
    one, other = (run.tensors(CHECKPOINT)["method"] for run in (looked, blind))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_no_look_takes_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch):
    """But for the first and the first that can judge, whatever they take."""
    clock = iter(range(100))  # each look takes a second
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(monitor, "examine", lambda *arguments: numbers())
    watch = monitor.Watch(TINY, IMAGES)
    looks = [(10, 1.0), (20, 99.0), (50, 99.0), (60, 149.0), (70, 150.0), (80, 199.0), (90, 200.0)]
    taken = [step for step, seconds in looks if watch.look(small("simclr"), step, seconds)]
    assert taken == [10, 50, 70, 90]


@pytest.mark.parametrize("total, last, expected", [(800.0, 1.0, 8), (400.0, 2.0, 5), (8.0, 2.0, 2)])
def test_points_share_the_time_of_the_whole_run(total: float, last: float, expected: int):
    """As many of the eight as 2 % of the time pay for, evenly over the run; and the first and the last in any case."""
    spent, taken = 0.0, []
    for number in range(1, 9):
        progress = number / 8
        if monitor.affordable(spent, last, 0.02, progress * total, progress):
            spent += last
            taken.append(number)
    assert len(taken) == expected and (taken[0], taken[-1]) == (1, 8)
    assert spent <= 0.02 * total + 2 * last


@pytest.mark.parametrize("steps, epoch, at", [(800, 800, 8), (800, 3, 8), (24, 24, 3), (12, 3, 4), (8, 1, 8)])
def test_there_are_eight_points_in_a_run_of_any_number_of_epochs(steps: int, epoch: int, at: int):
    """But within an epoch none sooner than eight steps after the one before."""
    points = monitor.Points(0, 0.0)
    taken = [i for i in range(1, steps + 1) if points.passed(i, i / steps, i % epoch == 0)]
    assert len(taken) == at and taken[-1] == steps
    resumed = monitor.Points(taken[-2], taken[-2] / steps)
    assert [i for i in range(taken[-2] + 1, steps + 1) if resumed.passed(i, i / steps, i % epoch == 0)] == [steps]


@pytest.mark.usefixtures("narrow")
def test_a_run_of_one_epoch_has_a_curve(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (
        monkeypatch.setattr(monitor, "SHARE", 1.0),
        monkeypatch.setattr("crlf.training.knn_curve.KNN_SHARE", 1.0),
    )  # it is over at once
    run = crlf.pretrain(dataclasses.replace(TINY, subset=640, batch_size=10, epochs=1), out=tmp_path, device="cpu")
    for name in ("h_rankme", "knn_accuracy"):
        assert [row["step"] for row in run.log() if name in row] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert len({row["knn_protocol"] for row in run.log() if "knn_protocol" in row}) == 1


def test_a_short_run_is_measured_on_fewer_images(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    monkeypatch.setattr(monitor, "examine", lambda method, images, *others: sizes.append(len(images)) or numbers())
    pixels = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    for steps in (10, 400, 10_000):  # of 64 images and 2 views: 2 % of the time, 3 images each, 8 looks of 2 views
        monitor.Watch(TINY, pixels).look(small("simclr"), steps // 8, 1.0, 1 / 8)
    monitor.Watch(TINY, pixels).look(small("simclr"), 3, 1.0)
    assert sizes == [128, int(0.02 * 3 * 400 * 128 / 8) // 2, 512, 512]


def test_the_sample_is_drawn_from_all_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(monitor, "SAMPLE", 6)
    watch, other = (monitor.Watch(dataclasses.replace(TINY, seed=seed), IMAGES) for seed in (0, 1))
    rows = [int((image == IMAGES).flatten(1).all(dim=1).nonzero()) for image in watch.images]
    assert len(set(rows)) == 6 and rows != sorted(rows) and max(rows) > 6
    assert not torch.equal(watch.images, other.images)
    assert len(monitor.Watch(TINY, IMAGES[:3]).images) == 3
