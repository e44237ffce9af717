"""Numbers at their limits: each works or is refused in one line, and is never silently wrong."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import some
from small_methods import narrow as narrow_head
from torch import nn

import crlf
from crlf import encoders
from crlf.augmentation import Views, ViewSettings
from crlf.data import PUBLISHED
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import TEMPERATURE
from crlf.methods.simclr import SimCLRSettings, nt_xent, nt_xent_views
from crlf.metrics import geometry
from crlf.optim import OPTIMIZERS, OptimSettings
from crlf.recipe import Recipe
from crlf.runs import checkpoints
from crlf.runs.files import save_array, save_tensors, write_json
from crlf.runs.run import CHECKPOINT, CLASSES, ENCODER, LOSS, Run
from crlf.runtime.allocator import keep_freed_memory
from crlf.runtime.devices import autocast
from crlf.visualization.figures import draw
from crlf.visualization.report import report

TINY = Recipe(data="shapes", subset=96, batch_size=32, views=2, epochs=2, precision="float32")
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (96, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(autouse=True)
def short_trial(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crlf.training.cost.REPEATS", 1)


def trained(folder: Path, images: np.ndarray, **settings: object) -> Run:
    np.save(folder / "images.npy", images)
    recipe = dataclasses.replace(TINY, data=str(folder / "images.npy"), **settings)
    return crlf.pretrain(recipe, out=folder / "run", device="cpu")


def finite(run: Run) -> bool:
    weights = run.tensors(ENCODER).values()
    return all(w.isfinite().all() for w in weights) and bool(np.isfinite(run.array(LOSS)).all())


# Images


@pytest.mark.parametrize("value", [0, 137, 255])
def test_images_that_are_all_the_same_are_refused(tmp_path: Path, value: int):
    with pytest.raises(InputError, match=r"images\.npy' must differ, but all 96 are the same$"):
        trained(tmp_path, np.full_like(NOISE, value))
    assert not (tmp_path / "run").exists()


def test_one_image_repeated_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="must differ, but all 96 are the same"):
        trained(tmp_path, np.repeat(NOISE[:1], 96, axis=0))


def one_in_many(images: np.ndarray) -> np.ndarray:
    images = np.zeros_like(images)
    images[-1] = 255
    return images


IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "black but for one": lambda: one_in_many(NOISE),
    "each of one colour": lambda: np.broadcast_to(NOISE[:, :, :1, :1], NOISE.shape),
    "each twice": lambda: np.repeat(NOISE[:48], 2, axis=0),
    "black and white": lambda: np.where(NOISE > 127, 255, 0).astype(np.uint8),
    "of one channel": lambda: NOISE[:, 0],
    "long": lambda: np.ascontiguousarray(NOISE[:, :, :8]),
}


@pytest.mark.parametrize("name", some(IMAGES, ["black but for one", "long"]))
def test_odd_images_end_in_numbers(tmp_path: Path, name: str):
    run = trained(tmp_path, IMAGES[name]())
    crlf.embed(run, device="cpu")
    draw(run, format="png")
    report(run)
    assert finite(run) and np.isfinite(run.array("train_emb.npy")).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_images_that_are_not_bytes_are_refused(tmp_path: Path, value: float, dtype: type):
    images = NOISE.astype(dtype)
    images[3, 0, 0, 0] = value if dtype != np.float16 else max(value, -65504)
    with pytest.raises(InputError, match=r"must be uint8"):
        trained(tmp_path, images)
    encoder = crlf.load(trained(tmp_path, NOISE, epochs=1), device="cpu")
    with pytest.raises(InputError, match="uint8"):
        encoder.encode(images)


def test_views_of_constant_images_are_finite():
    generator = torch.Generator().manual_seed(0)
    for value in (0, 128, 255):
        images = torch.full((64, 3, 32, 32), value, dtype=torch.uint8)
        for settings in (ViewSettings(), ViewSettings(blur=1.0, jitter=1.0, grayscale=1.0, crop_min=1e-6)):
            assert Views(settings, PUBLISHED["cifar10"])(images, generator, 2).isfinite().all()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_images_of_a_few_pixels(tmp_path: Path, side: int):
    try:
        run = trained(tmp_path, np.ascontiguousarray(NOISE[:, :, :side, :side]))
        assert finite(run)
    except InputError as error:
        assert "\n" not in str(error)


# Classes


def with_labels(run: Run, train: np.ndarray, test: np.ndarray, classes: list[str]) -> None:
    for name, labels in (("train", train), ("test", test)):
        save_array(run.file(f"{name}_lbl.npy"), labels.astype(np.int64))
    write_json(run.file(CLASSES), classes)


@pytest.fixture
def embedded(tmp_path: Path) -> Run:
    run = crlf.pretrain(TINY, out=tmp_path / "run", device="cpu")
    return crlf.embed(run, device="cpu")


def test_one_class_is_refused_by_the_probes_and_drawn(embedded: Run):
    with_labels(embedded, np.zeros(96), np.zeros(96), ["only"])
    with pytest.raises(InputError, match=r"train_lbl\.npy must hold two classes or more, not 1"):
        crlf.probe(embedded, device="cpu")
    draw(embedded, format="png")
    report(embedded)


def test_a_class_of_one_image_and_one_that_is_only_tested(embedded: Run):
    train, test = np.zeros(96), np.zeros(96)
    train[0], test[0] = 1, 2
    with_labels(embedded, train, test, ["many", "one", "never learned"])
    scores = crlf.probe(embedded, device="cpu")
    assert 0 <= scores["linear_accuracy"] <= 95 / 96 and scores["chance"] == pytest.approx(95 / 96)


def test_embeddings_without_spread_are_chance(embedded: Run):
    for name in ("train_emb.npy", "test_emb.npy"):
        save_array(embedded.file(name), np.ones_like(embedded.array(name)))
    scores = crlf.probe(embedded, device="cpu")
    assert np.isfinite([scores["linear_accuracy"], scores["knn_accuracy"]]).all()
    assert scores["linear_accuracy"] <= 0.5
    draw(embedded, format="png")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_embeddings_of_any_size_score_as_they_would(embedded: Run, scale: float):
    plain = crlf.probe(embedded, device="cpu")
    for name in ("train_emb.npy", "test_emb.npy"):
        save_array(embedded.file(name), (embedded.array(name).astype(np.float64) * scale).astype(np.float32))
    scaled = crlf.probe(embedded, device="cpu")
    for name in ("linear_accuracy", "knn_accuracy"):
        assert scaled[name] == pytest.approx(plain[name], abs=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(embedded: Run, value: float):
    rows = embedded.array("test_emb.npy")
    rows[7, 1] = value
    save_array(embedded.file("test_emb.npy"), rows)
    for act in (lambda: crlf.probe(embedded, device="cpu"), lambda: draw(embedded, format="png")):
        with pytest.raises(InputError, match=r"test_emb\.npy must be finite"):
            act()


# Weights and gradients


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_embed_nothing(tmp_path: Path, value: float):
    run = crlf.pretrain(TINY, out=tmp_path / "run", device="cpu")
    weights = run.tensors(ENCODER)
    first = next(name for name, w in weights.items() if w.ndim == 4)
    weights[first][0, 0, 0, 0] = value
    save_tensors(run.file(ENCODER), weights)
    with pytest.raises(InputError, match=r"the embedding of image 0 is not finite: the encoder's weights are damaged"):
        crlf.embed(run, device="cpu")
    assert not run.file("train_emb.npy").exists()
    with pytest.raises(InputError, match="is not finite"):
        crlf.load(run, device="cpu").encode(NOISE[:2])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_and_its_weights_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, value: float
):
    """In the last step of an epoch: its loss is a number, and there is no next loss that would tell."""
    kind, count = METHODS["simclr"], [0]
    original = kind.loss

    def planted(self: torch.nn.Module, *projections: torch.Tensor) -> tuple:
        loss, stats = original(self, *projections)
        count[0] += 1
        if count[0] == 6:
            loss = loss + 0 * self.projector[0].weight.sum() if math.isnan(value) else loss
            self.projector[0].weight.register_hook(lambda grad: grad * value)
        return loss, stats

    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    monkeypatch.setattr(kind, "loss", planted)
    recipe = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, optimizer=optimizer))
    with pytest.raises(InputError, match=r"^weights 'projector\.0\.weight' hold NaN or infinite values after step 6: "):
        crlf.pretrain(recipe, out=tmp_path, device="cpu")
    run = Run(tmp_path)
    assert run.tensors(CHECKPOINT)["step"] == 3 and not run.file(ENCODER).exists()
    monkeypatch.setattr(kind, "loss", original)
    assert finite(crlf.pretrain(recipe, out=tmp_path, device="cpu", resume=True))


@pytest.mark.parametrize("lr", [1e-12, 1e3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_learning_rate_trains_or_is_refused(tmp_path: Path, lr: float, optimizer: str):
    try:
        optim = dataclasses.replace(TINY.optim, optimizer=optimizer, lr=lr)
        assert finite(crlf.pretrain(dataclasses.replace(TINY, optim=optim), out=tmp_path, device="cpu"))
    except InputError as error:
        assert "\n" not in str(error)
        assert not checkpoints.kept(Run(tmp_path)) or all(
            value.isfinite().all() for value in checkpoints.load(Run(tmp_path))["method"].values()
        )


# Batches


@pytest.mark.parametrize("settings", some([{"batch_size": 2}, {"batch_size": 3, "micro_batch": 2}, {"micro_batch": 1}]))
@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_batches(tmp_path: Path, method: str, settings: dict):
    recipe = dataclasses.replace(TINY, method=method, subset=16, batch_size=4, head=narrow_head(method))
    try:
        assert finite(crlf.pretrain(dataclasses.replace(recipe, **settings), out=tmp_path, device="cpu"))
    except InputError as error:
        assert "\n" not in str(error) and "batch" in str(error)


def test_a_batch_of_one_is_refused():
    with pytest.raises(InputError, match=r"^batch_size must be in 2\.\.65536, not 1$"):
        Recipe(batch_size=1)
    with pytest.raises(InputError, match="at least 2 images in a batch, not 1"):
        nt_xent(torch.randn(1, 8), torch.randn(1, 8), 0.5)


# Temperatures


def plain(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent of two views in float64, written down as it stands in the paper; its logits can be of any size."""
    z = torch.nn.functional.normalize(z.double(), dim=-1).flatten(0, 1)
    count = len(z) // 2
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    positive = torch.arange(2 * count).roll(count)
    return torch.nn.functional.cross_entropy(logits, positive)


@pytest.mark.parametrize("temperature", [TEMPERATURE[0], 0.01, 0.2, TEMPERATURE[1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["one", "many"])
def test_any_temperature_gives_the_loss_of_float64(
    monkeypatch: pytest.MonkeyPatch, temperature: float, dtype: torch.dtype, blocks: str
):
    if blocks == "many":
        monkeypatch.setattr("crlf.methods.negatives.LOGITS", 100)
    z = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, theirs = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, expected = nt_xent_views(ours, temperature), plain(theirs, temperature)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    close = 1e-2 if dtype == torch.bfloat16 else 1e-3
    scale = theirs.grad.abs().max()
    assert ours.grad.isfinite().all() and ((ours.grad.double() - theirs.grad).abs().max() <= close * scale)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-4, 101.0, math.nan, math.inf])
def test_temperatures_beyond_the_limits_are_refused(temperature: float):
    with pytest.raises(InputError, match=r"^temperature must be in 0\.001\.\.100, not "):
        SimCLRSettings(temperature=temperature)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("temperature", TEMPERATURE)
def test_training_at_the_limits_of_the_temperature(tmp_path: Path, precision: str, temperature: float):
    head = SimCLRSettings(temperature=temperature)
    recipe = dataclasses.replace(TINY, head=head, precision=precision)
    assert finite(crlf.pretrain(recipe, out=tmp_path, device="cpu"))


# Half precision


@pytest.mark.parametrize("method", METHODS)
def test_projections_that_overflow_bf16_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    """Activations beyond 3e38, in the third step."""
    kind, count = METHODS[method], [0]
    original = kind.project

    def huge(self: torch.nn.Module, views: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        count[0] += 1
        scale = 3e38 if count[0] == 3 else 1.0
        return original(self, [view * scale * scale for view in views])

    monkeypatch.setattr("crlf.training.pretrain.tell_cost", lambda state, data: None)
    monkeypatch.setattr(kind, "project", huge)
    recipe = dataclasses.replace(TINY, method=method, precision="bf16", head=narrow_head(method))
    with pytest.raises(InputError, match=r"^(the loss of step 3 is (nan|inf)|weights '.*' hold NaN)"):
        crlf.pretrain(recipe, out=tmp_path, device="cpu")
    assert not Run(tmp_path).file(ENCODER).exists() and not checkpoints.kept(Run(tmp_path))


@functools.cache
def convolution(name: str) -> type[nn.Conv2d]:
    """The kind that an encoder is made of."""
    return next(type(m) for m in encoders.build(name, 3, 32).modules() if isinstance(m, nn.Conv2d))


def spoilt_memory() -> None:
    """What is allocated next holds NaN, until it is written."""
    sizes = [factor << shift for factor in (1, 3, 9) for shift in range(5, 21)]
    del [torch.full((size,), math.nan) for size in sizes][:]


def gradient(conv: nn.Conv2d, x: torch.Tensor, precision: str) -> torch.Tensor:
    """Of the weights, of the mean square."""
    conv.weight.grad = None
    spoilt_memory()
    with autocast(precision, torch.device("cpu")):
        y = conv(x)
    spoilt_memory()
    y.float().square().mean().backward()
    return conv.weight.grad


@pytest.mark.parametrize("name, kernel", [("resnet18", 3), ("timm:resnet10t", 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 1), (2, 2), (4, 2), (3, 3)])
def test_gradients_of_narrow_maps_hold_no_foreign_memory(name: str, kernel: int, stride: int, height: int, width: int):
    """torch's own gradient in bf16 does, of maps that are narrower than the kernel."""
    keep_freed_memory()
    kind = convolution(name)
    torch.manual_seed(0)
    conv = kind(64, 64, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(16, 64, height, width).contiguous(memory_format=torch.channels_last)
    exact, found = gradient(conv, x, "float32").clone(), gradient(conv, x, "bf16")
    assert found.isfinite().all() and (found - exact).norm() <= 0.02 * exact.norm()


def test_a_loss_of_bf16_projections_is_float32s(monkeypatch: pytest.MonkeyPatch):
    z = 3e38 * torch.ones(2, 8, 4, dtype=torch.bfloat16)  # whose squares no float holds
    assert not nt_xent_views(z * torch.randn(2, 8, 4).sign().bfloat16(), 0.2).isnan()


# What measures


def test_measures_of_odd_features_are_finite_or_nan_and_never_raise():
    for h in (torch.zeros(8, 4), torch.ones(8, 4), 1e30 * torch.randn(8, 4), 1e-30 * torch.randn(8, 4)):
        values = geometry.singular_values(geometry.centred(h))
        assert 1 <= geometry.effective_rank(values) <= 4
    assert geometry.singular_values(torch.full((8, 4), math.nan)).isnan().all()


@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_settings_that_are_no_numbers_are_refused(setting: str, value: float):
    with pytest.raises(InputError, match=f"^{setting} must be "):
        OptimSettings(**{setting: value})
