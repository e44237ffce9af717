"""Health: each measure against a closed form or a naive loop; it changes nothing; collapses are named, runs are not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import i0
from test_method_learning import VIEWS, gradient_to_both_sides, gratings, moderate, no_predictor
from test_methods import EVERY, LABELS, small, views_of
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


def rotation(D: int) -> Tensor:
    return torch.linalg.qr(drawn(D, D, seed=9))[0]


def circle(N: int) -> Tensor:
    angle = 2 * math.pi * torch.arange(N).double() / N
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# Ranks and spectra


def with_values(values: list[float], N: int = 30) -> Tensor:
    """A matrix (N, D) of these singular values."""
    D = len(values)
    return (torch.linalg.qr(drawn(N, D).double())[0] * torch.tensor(values).double()) @ rotation(D).double()


@pytest.mark.parametrize("shape", [(30, 4), (4, 30), (7, 7)])
def test_singular_values_are_numpys(shape: tuple[int, int]):
    h = drawn(*shape)
    values = geometry.singular_values(h)
    assert values.dtype == torch.float64 and values.device.type == "cpu"
    np.testing.assert_allclose(values, np.linalg.svd(h.double().numpy(), compute_uv=False), rtol=1e-9)


def test_known_singular_values():
    found = geometry.singular_values(with_values([5, 3, 0.5, 0]))
    torch.testing.assert_close(found, torch.tensor([5, 3, 0.5, 0]).double(), atol=1e-6, rtol=0)


def test_what_is_not_finite_has_no_rank_and_is_no_collapse():
    h = drawn(6, 4)
    h[2, 1] = torch.nan
    assert geometry.singular_values(h).isnan().all() and math.isnan(geometry.rankme(h)) and math.isnan(geometry.dead(h))
    values = geometry.singular_values(geometry.centred(h))
    assert geometry.diagnose({f"h_{key}": value for key, value in geometry.describe(h, h, values).items()}) is None


@pytest.mark.parametrize("D", [1, 3, 8])
def test_orthogonal_features_have_full_rank(D: int):
    h = 7 * torch.linalg.qr(drawn(20, D))[0]
    assert geometry.rankme(h) == pytest.approx(D, rel=1e-4)
    assert geometry.participation_ratio(geometry.singular_values(h)) == pytest.approx(D, rel=1e-4)


def test_one_direction_has_rank_1():
    h = drawn(20, 1) @ drawn(1, 8, seed=1)
    values = geometry.singular_values(h)
    assert geometry.rankme(h) == pytest.approx(1, abs=1e-4)
    assert geometry.effective_rank(values) == pytest.approx(1, abs=1e-4)
    assert geometry.participation_ratio(values) == pytest.approx(1, abs=1e-9)


def test_rank_of_known_singular_values():
    """Two of 3 and one of 1: shares 3/7, 3/7 and 1/7, and 19² / (81 + 81 + 1) by squares."""
    values = torch.tensor([3.0, 3.0, 1.0]).double()
    entropy = -(2 * 3 / 7 * math.log(3 / 7) + 1 / 7 * math.log(1 / 7))
    assert geometry.effective_rank(values) == pytest.approx(math.exp(entropy))
    assert geometry.rankme(with_values([3, 3, 1])) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert geometry.participation_ratio(values) == pytest.approx(19**2 / 163)


def test_rankme_is_the_papers_formula():
    h = drawn(40, 12) * torch.arange(1, 13)
    sigma = np.linalg.svd(h.double().numpy(), compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    assert geometry.rankme(h) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


def test_zeros_have_rank_1():
    assert geometry.effective_rank(torch.zeros(4)) == geometry.participation_ratio(torch.zeros(4)) == 1


def test_ranks_stay_when_features_are_turned_or_scaled():
    h = drawn(40, 6) * torch.tensor([9.0, 4, 2, 1, 1, 0.1])
    for other in (h @ rotation(6), 1000 * h, h.flip(0)):
        assert geometry.rankme(other) == pytest.approx(geometry.rankme(h), rel=1e-4)
        ratios = [geometry.participation_ratio(geometry.singular_values(x)) for x in (other, h)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


def test_a_shift_changes_no_rank_of_centred_features():
    h = drawn(40, 6)
    ranks = [geometry.effective_rank(geometry.singular_values(geometry.centred(x))) for x in (h, h + 50)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-4) and geometry.rankme(h + 50) < 2


def test_the_spectrum_is_of_ranks_1_2_4():
    assert geometry.spectrum(torch.tensor([8.0, 4, 3, 2, 1, 1])) == pytest.approx([1, 0.5, 0.25])
    assert geometry.spectrum(torch.tensor([8.0])) == [1] and geometry.spectrum(torch.zeros(2)) == [0, 0]


# On the sphere


def naive(a: Tensor, b: Tensor) -> dict[str, float]:
    """In loops over pairs, from the papers' formulas."""
    u, v = ((x / x.norm(dim=1, keepdim=True)).double() for x in (a, b))
    N = len(u)
    others = [(i, j) for i in range(N) for j in range(N) if i != j]

    def distance(x: Tensor, y: Tensor) -> float:
        return float((x - y).square().sum())

    same = sum(distance(u[i], v[i]) for i in range(N)) / N
    return {
        "alignment": same,
        "uniformity": math.log(sum(math.exp(-2 * distance(u[i], u[j])) for i, j in others) / len(others)),
        "agreement": 1 - same / (sum(distance(u[i], v[j]) for i, j in others) / len(others)),
        "positive_cosine": sum(float(u[i] @ v[i]) for i in range(N)) / N,
        "negative_cosine": sum(float(u[i] @ v[j]) for i, j in others) / len(others),
    }


def described(a: Tensor, b: Tensor) -> dict[str, float]:
    return geometry.describe(a, b, geometry.singular_values(geometry.centred(a)))


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_measures_on_the_sphere_are_a_naive_loops(noise: float):
    a = drawn(9, 5) + 1
    b = a + noise * drawn(9, 5, seed=1)
    found = described(a, b)
    for key, value in naive(a, b).items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def test_they_stay_when_features_are_turned_or_scaled():
    a, b = drawn(9, 5), drawn(9, 5, seed=1)
    before, after = described(a, b), described(30 * a @ rotation(5), 20 * b @ rotation(5))
    for key in naive(a, b):
        assert after[key] == pytest.approx(before[key], abs=1e-5), key


def test_a_uniform_circle():
    """The mean of exp(-2 (2 - 2 cos)) over a circle is exp(-4) I0(4); the pairs of a point with itself are left out."""
    N = 100
    expected = math.log((N * math.exp(-4) * i0(4) - 1) / (N - 1))
    assert geometry.uniformity(circle(N).float()) == pytest.approx(expected, abs=1e-5)
    assert geometry.dead(circle(N)) == 0 and geometry.rankme(circle(N)) == pytest.approx(2, abs=1e-4)


def test_many_dimensions_come_near_the_lowest_uniformity():
    assert geometry.uniformity(drawn(200, 2000)) == pytest.approx(-4, abs=0.02)
    assert geometry.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_opposite_views_are_as_far_apart_as_can_be():
    a = drawn(6, 3)
    assert geometry.alignment(a, -a) == pytest.approx(4)
    assert geometry.similarities(a, -a)[0].tolist() == pytest.approx([-1] * 6)


@pytest.mark.parametrize("row", [torch.ones(4), torch.tensor([0.1, -3, 7, 1e-9]), torch.zeros(4)])
def test_identical_features(row: Tensor):
    h = row.repeat(10, 1)
    found = described(h, h)
    assert found["alignment"] == found["agreement"] == 0 and found["dead"] == 1
    assert found["spread"] < 1e-6
    if row.any():
        assert found["uniformity"] == pytest.approx(0, abs=1e-5) and found["positive_cosine"] == pytest.approx(1)


def test_agreement_estimates_the_share_of_the_variance_that_tells_images():
    """Nearly constant rows: an image's own part has a variance of 4, each view's noise of 1."""
    mean, own, noise = 1000 + torch.zeros(2000, 50), 2 * drawn(2000, 50, seed=1), drawn(2, 2000, 50, seed=2)
    assert geometry.agreement(mean + own + noise[0], mean + own + noise[1]) == pytest.approx(0.8, abs=0.01)
    assert geometry.agreement(own, own) == pytest.approx(1) and abs(geometry.agreement(*noise)) < 0.01


def test_dead_features_are_counted_whatever_the_scale():
    h = drawn(50, 8)
    h[:, 2] = 5.0
    h[:, 5] = 1e-5 * h[:, 5]
    for other in (h, 1e4 * h, 1e-4 * h):
        assert geometry.dead(other) == 0.25


def test_histograms_count_every_pair():
    cosines = torch.tensor([-1.0, -0.95, 0.05, 0.96, 1.0, 1.0000001])
    counts = geometry.histogram(cosines)
    assert sum(counts) == 6 and (counts[0], counts[10], counts[19]) == (2, 1, 3)
    positive, negative = geometry.similarities(drawn(7, 3), drawn(7, 3, seed=1))
    assert positive.shape == (7,) and negative.shape == (42,)


def test_the_gradients_length():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    a.grad = torch.tensor([3.0, 4.0])
    assert monitor.gradient_norm([a, b]).item() == 5
    b.grad = torch.tensor([12.0, 0, 0])
    assert monitor.gradient_norm([a, b]).item() == 13


# Measuring a method


IMAGES = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def measured(method: Method, seed: int = 1, batch: int = 24) -> dict[str, float]:
    return monitor.measure(method, IMAGES, Views(VIEWS), torch.Generator().manual_seed(seed), batch)


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
    assert {key[0] for key in found} == {"h", "z"}
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

SOUND = {"spread": 0.9, "agreement": 0.6, "effective_rank": 20.0, "dead": 0.0}


def numbers(h: dict[str, float] | None = None, z: dict[str, float] | None = None) -> dict[str, float]:
    found = {f"h_{key}": value for key, value in (SOUND | (h or {})).items()}
    return found | ({} if z is None else {f"z_{key}": value for key, value in (SOUND | z).items()})


@pytest.mark.parametrize(
    "found, gist",
    [
        (numbers(z={"spread": 0.05, "agreement": 0.1}), "nearly the same projection (spread of z 0.050, below 0.1)"),
        (numbers(h={"spread": 0.01, "agreement": 0.1}), "nearly the same embedding (spread of h 0.010, below 0.02)"),
        (numbers(z={"effective_rank": 1.02}), "every projection (effective rank of z 1.02, below 1.1)"),
        (numbers(h={"effective_rank": 1.4}), "every embedding (effective rank of h 1.40, below 2.0)"),
        (numbers(h={"dead": 0.95}), "embedding are dead (the share of h that is: 0.950, above 0.9)"),
    ],
)
def test_a_collapse_is_named_with_its_number_its_threshold_and_advice(found: dict[str, float], gist: str):
    line = geometry.diagnose(found)
    assert line and line.startswith("collapse: ") and gist in line and "; try " in line and "\n" not in line


def test_what_is_sound_is_not_accused():
    assert geometry.diagnose(numbers()) is None and geometry.diagnose(numbers(z={})) is None
    # nearly equal projections whose differences tell images: MoCo at its start, and it learns
    assert geometry.diagnose(numbers(z={"spread": 0.02, "agreement": 0.8})) is None


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


@pytest.mark.parametrize("name", METHODS)
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


@pytest.mark.parametrize("name", ["simsiam", "byol"])
@pytest.mark.parametrize("spoil", [None, no_predictor, gradient_to_both_sides])
def test_a_method_without_its_guard_is_caught(name: str, spoil, tables: ImageSet, monkeypatch: pytest.MonkeyPatch):
    """After 72 steps. SimSiam's projector loses its last batch norm in all arms: see test_method_learning.py."""
    torch.manual_seed(0)
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
        method(Views(VIEWS)(batch, g, 2).chunk(2))[0].backward()
        optimizer.step()
        method.after_step(step / 72)
    found = geometry.diagnose(
        monitor.measure(method, tables.images[:256], Views(VIEWS), torch.Generator().manual_seed(1))
    )
    assert (found is not None) == (spoil is not None), found


def spoiled(kind: str, **other) -> Recipe:
    return Recipe(data="gratings", encoder=kind, batch_size=64, views=2, epochs=5, augmentation=VIEWS, **other)


@pytest.mark.parametrize("kind, gist", [("constant", "same projection"), ("dominant", "every"), ("dead", "dead")])
def test_a_run_that_collapses_is_warned_of_once(kind: str, gist: str, tables: ImageSet, tmp_path, capsys):
    run = crlf.pretrain(spoiled(kind), out=tmp_path, device="cpu")  # judged after 60 steps
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: collapse: ")]
    assert len(lines) == 1 and gist in lines[0]
    assert run.file(ENCODER).exists()


def test_a_collapse_is_named_within_an_epoch_and_only_once(tables: ImageSet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "SETTLED", 10)
    crlf.pretrain(spoiled("constant", subset=0), out=tmp_path, device="cpu")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines].index("warning:") == 0  # before the first epoch's own line
    assert sum("collapse" in line for line in lines) == 1


def test_stop_on_collapse_ends_the_run_and_keeps_the_checkpoint(tables: ImageSet, tmp_path, capsys):
    recipe = spoiled("constant", stop_on_collapse=True)
    with pytest.raises(InputError, match=r"^collapse: .*; try .*; stopped, and the checkpoint is in ") as stopped:
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


def test_looking_changes_no_bit_of_the_training(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(monitor, "SHARE", math.inf)
    looked = crlf.pretrain(TINY, out=tmp_path / "looked", device="cpu")
    assert sum("h_rankme" in row for row in looked.log()) == 2
    monkeypatch.setattr(monitor.Watch, "look", lambda self, method, step, seconds: {})
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


def test_the_sample_is_drawn_from_all_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(monitor, "SAMPLE", 6)
    watch, other = (monitor.Watch(dataclasses.replace(TINY, seed=seed), IMAGES) for seed in (0, 1))
    rows = [int((image == IMAGES).flatten(1).all(dim=1).nonzero()) for image in watch.images]
    assert len(set(rows)) == 6 and rows != sorted(rows) and max(rows) > 6
    assert not torch.equal(watch.images, other.images)
    assert len(monitor.Watch(TINY, IMAGES[:3]).images) == 3
