"""Every encoder keeps one contract; the stems and the cost are what the docs say."""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sampling import some
from small_methods import met
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crlf import encoders
from crlf.augmentation import ViewSettings
from crlf.data import PUBLISHED, SOURCES, ImageSet
from crlf.data.datasets import shapes
from crlf.embedding.embed import embed
from crlf.encoders import ENCODERS, EmbeddingSettings
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import loss_of, training_flops
from crlf.optim import OPTIMIZERS, OptimSettings
from crlf.recipe import Recipe
from crlf.training.pretrain import pretrain

NAMES = [*ENCODERS, "timm:resnet10t"]


@functools.cache
def built(name: str, channels: int, size: int) -> nn.Module:
    return encoders.build(name, channels, size)


def fresh(name: str, channels: int, size: int) -> nn.Module:
    """A copy, since drawing the weights of a large network takes longer than all that is done with it here."""
    return copy.deepcopy(built(name, channels, size))


@pytest.mark.parametrize("channels, size", some([(1, 16), (4, 64), (3, 32)], 2))
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, channels: int, size: int):
    encoder, twin = fresh(name, channels, size), fresh(name, channels, size)
    h = encoder(torch.randn(2, channels, size, size))
    assert h.shape == (2, encoder.out_dim) and h.dtype == torch.float32 and h.isfinite().all()
    (h * torch.randn_like(h)).sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    if not name.startswith("timm:"):  # timm's residual branches begin at zero, and what is inside them moves later
        assert all(p.grad.abs().sum() > 0 for p in trained)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.01)
    x = torch.randn(2, channels, size, size)
    assert not torch.equal(twin.eval()(x), encoder.eval()(x))
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(x), encoder(x))


PAIRS = list(itertools.product(ENCODERS, METHODS))


@pytest.mark.parametrize("name, method", some(PAIRS, [pair for pair in PAIRS if "cnn" in pair or "simclr" in pair]))
def test_every_encoder_takes_a_step_of_every_method(name: str, method: str):
    model = met(METHODS[method](fresh(name, 3, 16), METHODS[method].Settings()), 4)
    before = {key: p.detach().clone() for key, p in model.encoder.named_parameters()}
    optimizers = OPTIMIZERS["sgd"](list(model.named_parameters()), OptimSettings(optimizer="sgd", lr=0.1))
    loss, _ = loss_of(model, [torch.randn(4, 3, 16, 16) for _ in range(2)], torch.tensor([0, 0, 1, 1]))
    assert loss.isfinite()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    model.after_step(0.5)
    moved = {key for key, p in model.encoder.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key, p in model.encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("regions", [1, 2, 3])
@pytest.mark.parametrize("side", [(4, 4), (7, 5), (2, 1), (1, 1)])
def test_region_means_are_adaptive_average_pooling(regions: int, side: tuple[int, int]):
    x = torch.randn(2, 3, *side)
    means = encoders.RegionMean(regions)(x).unflatten(1, (regions, regions, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(means, torch.nn.functional.adaptive_avg_pool2d(x, regions))


@pytest.mark.parametrize("name", [name for name in ENCODERS if encoders.has_regions(name)])
def test_regions_change_no_weight_and_average_to_the_whole(name: str):
    whole, parts = (encoders.build(name, 3, 32, regions).eval() for regions in (1, 2))
    parts.load_state_dict(whole.state_dict())
    assert parts.out_dim == 4 * whole.out_dim
    assert encoders.embedding_dim(name, 3, 32, EmbeddingSettings(regions=2)) == parts.out_dim
    x = torch.randn(2, 3, 32, 32)
    average = torch.cat([part.unflatten(1, (4, -1)).mean(dim=1) for part in split_maps(parts(x), parts)], dim=1)
    torch.testing.assert_close(average, whole(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny", "timm:resnet10t"])
def test_what_has_no_regions_stays_as_it_is(name: str):
    whole, parts = (encoders.build(name, 3, 32, regions).eval() for regions in (1, 2))
    assert not encoders.has_regions(name)
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(whole(x), parts(x))
    assert encoders.embedding_dim(name, 3, 32, EmbeddingSettings(regions=2)) == whole.out_dim == parts.out_dim


def split_maps(h: torch.Tensor, encoder: nn.Module) -> list[torch.Tensor]:
    """The embedding's parts, a map each: the light CNN reads three."""
    widths = [64, 128, 256] if isinstance(encoder, encoders.CNN) else [h.shape[1] // 4]
    return list(h.split([4 * width for width in widths], dim=1))


def test_a_frozen_encoder_takes_an_image_and_its_mirror_image_as_one():
    encoder = encoders.build("cnn", 3, 32, 2)
    frozen = encoders.Frozen(encoder, mirror=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(frozen(x), frozen(x.flip(3)))
    torch.testing.assert_close(frozen(x), (encoder(x) + encoder(x.flip(3))) / 2)
    assert torch.equal(encoders.Frozen(encoder, mirror=False)(x), encoder(x))
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_cnn_costs_at_most_20_mmac_an_image():
    with FlopCounterMode(display=False) as counter:
        encoders.build("cnn", 3, 32)(torch.randn(2, 3, 32, 32))
    assert counter.get_total_flops() / 2 / 2 <= 20e6


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_stem_follows_the_size_of_the_images(name: str):
    small, large = (fresh(name, 3, size) for size in (32, 64))
    assert small.conv1.kernel_size == (3, 3) and small.conv1.stride == (1, 1) and isinstance(small.maxpool, nn.Identity)
    assert (
        large.conv1.kernel_size == (7, 7) and large.conv1.stride == (2, 2) and isinstance(large.maxpool, nn.MaxPool2d)
    )
    assert small.choice == "small-image stem for 32 px" and large.choice == "usual stem for 64 px"


def test_resnets_are_those_of_the_paper():
    """Parameters in millions without the classifier, from He et al.'s architectures: 25.6, 21.8 and 11.7 with it."""
    for name, millions in (("resnet18", 11.7), ("resnet34", 21.8), ("resnet50", 25.6)):
        encoder = fresh(name, 3, 64)
        assert count(encoder) + 1000 * (encoder.out_dim + 1) == pytest.approx(millions * 1e6, abs=5e4)


def test_vits_are_those_of_the_paper():
    """DeiT's table 1 has 5.7 and 22 million at 224 px, with the classifier."""
    for name, millions in (("vit_tiny", 5.7), ("vit_small", 22.05)):
        encoder = fresh(name, 3, 224)
        assert count(encoder) + 1000 * (encoder.out_dim + 1) == pytest.approx(millions * 1e6, abs=5e4)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_vits_patch_follows_the_size_of_the_images():
    sizes = {16: 4, 28: 4, 32: 4, 63: 4, 64: 8, 96: 8, 127: 8, 128: 16, 224: 16}
    assert {size: encoders.patch_side(size) for size in sizes} == sizes
    encoder = fresh("vit_tiny", 3, 64)
    assert encoder.patch_embed.proj.weight.shape == (192, 3, 8, 8)
    assert encoder.choice == "patches of 8 px for 64 px, their projection random and fixed"


def test_a_vits_patch_projection_alone_is_fixed():
    fixed = {key for key, p in fresh("vit_tiny", 3, 32).named_parameters() if not p.requires_grad}
    assert fixed == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_a_vit_takes_views_that_are_smaller_and_not_square():
    encoder = fresh("vit_tiny", 3, 32).eval()
    assert encoders.trial(encoder, "vit_tiny", 3, 24, 24) == encoders.trial(encoder, "vit_tiny", 3, 24, 40) == 192


def test_a_model_of_timm_is_timms():
    torch.manual_seed(0)
    ours = encoders.build("timm:resnet10t", 3, 32)
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=0)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.out_dim == 512
    assert encoders.build("timm:mobilenetv3_small_050", 1, 32).out_dim == 1024  # its num_features is 288


def test_a_model_of_timm_is_told_the_size_where_it_takes_one():
    assert fresh("timm:swin_tiny_patch4_window7_224", 3, 32).patch_embed.img_size == (32, 32)
    vit = fresh("timm:vit_tiny_patch16_224", 3, 64)
    assert vit.patch_embed.img_size == (64, 64) and not vit.patch_embed.strict_img_size


def test_unknown_encoder_is_offered_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'resnet18'"):
        encoders.build("resnt18", 3, 32)
    with pytest.raises(InputError, match=r"encoder 'resnt18' is not known: choose from cnn, .*timm:NAME"):
        Recipe(encoder="resnt18")


def refused(recipe: Recipe, out: Path) -> str:
    """The one line in which pretraining says no, before it made the folder."""
    with pytest.raises(InputError) as error:
        pretrain(recipe, out=out, device="cpu")
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def test_unknown_model_of_timm_is_offered_the_nearest(tmp_path: Path):
    line = refused(Recipe(encoder="timm:resnt18", data="shapes"), tmp_path / "run")
    assert line.startswith("encoder 'timm:resnt18' is not known: timm ") and "Did you mean 'timm:resnet18' or" in line


def test_an_encoder_that_does_not_take_the_images_or_their_views(tmp_path: Path):
    line = refused(Recipe(encoder="timm:vit_tiny_patch16_224", data="shapes"), tmp_path / "run")
    assert "does not accept 24 × 24 px: " in line and line.endswith(
        "--resolution 1 makes the views as large as the images"
    )
    odd = ViewSettings(resolution=0.9)
    line = refused(Recipe(encoder="vit_tiny", data="shapes", augmentation=odd), tmp_path / "run")
    assert "'vit_tiny' does not accept 29 × 29 px: " in line


def test_training_flops_are_those_counted_by_hand():
    """A view through the light CNN at 32 px and its projector: two operations for each multiply-add, and backward."""
    encoder = encoders.CNN(3, widths=(4, 8))
    method = METHODS["simclr"](encoder, METHODS["simclr"].Settings(hidden=16, projection=8))
    convolutions = 32 * 32 * 4 * 27 + 16 * 16 * 8 * 36  # the pool comes after the first
    projector = encoder.out_dim * 16 + 16 * 8
    logits = (4 * 4 + 2 * 2 * 2) * 8 / 4  # with negatives and with positives of two images and two views, by view
    assert training_flops(method, 2, 3, 32, 32) == 3 * 2 * (convolutions + projector + logits)


def test_a_target_costs_a_forward_pass_and_no_backward():
    encoder = encoders.CNN(3, widths=(4, 8))
    method = METHODS["byol"](encoder, METHODS["byol"].Settings(hidden=16, projection=8))
    convolutions = 32 * 32 * 4 * 27 + 16 * 16 * 8 * 36
    projector, predictor = encoder.out_dim * 16 + 16 * 8, 2 * 8 * 16
    trained = convolutions + projector + predictor
    assert training_flops(method, 2, 3, 32, 32) == 2 * (3 * trained + convolutions + projector)


def tinted(channels: int) -> tuple[ImageSet, ImageSet]:
    """32 shapes of 16 px and of so many channels, twice."""
    whole = shapes.draw_set("train", 32, seed=0)
    images = whole.images[:, [0, 1, 2, 0][:channels], ::2, ::2].contiguous()
    one = ImageSet(images, whole.labels, whole.classes, whole.ids)
    return one, one


@pytest.mark.parametrize(
    "name, channels",
    some([("cnn", 4), ("vit_tiny", 1), ("timm:resnet10t", 1), ("cnn", 1), ("resnet18", 4), ("vit_tiny", 3)], 3),
)
def test_a_run_with_each_family(name: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(SOURCES, "tinted", lambda data_dir: tinted(channels))
    recipe = Recipe(
        encoder=name, data="tinted", subset=16, epochs=1, batch_size=8, views=2,
        optim=OptimSettings(optimizer="sgd", lr=0.01),
    )  # fmt: skip
    run = embed(pretrain(recipe, out=tmp_path / "run", device="cpu"), device="cpu")
    rows = np.load(run.file("train_emb.npy"))
    assert rows.shape == (16, encoders.embedding_dim(name, channels, 16, recipe.embedding)) and np.isfinite(rows).all()
    said = capsys.readouterr().err
    assert said.count(f"encoder {name}: ") == (name in ("resnet18", "vit_tiny"))
    assert np.isfinite(np.load(run.file("loss.npy"))).all()


def test_statistics_of_another_number_of_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SOURCES, "tinted", lambda data_dir: tinted(4))
    line = refused(Recipe(data="tinted", batch_size=16, normalisation=PUBLISHED["cifar10"]), tmp_path / "run")
    assert line.startswith("mean and std must have one value, or one for each of the 4 channels, not 3")
