"""Every encoder keeps one contract; the stems and the cost are what the docs say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crlf import encoders
from crlf.encoders import ENCODERS, EmbeddingSettings
from crlf.errors import InputError
from crlf.methods import METHODS
from crlf.methods.base import forward_flops


@pytest.mark.parametrize("channels, size", [(3, 32), (1, 32), (3, 64), (4, 24)])
@pytest.mark.parametrize("name", ENCODERS)
def test_contract(name: str, channels: int, size: int):
    encoder = encoders.build(name, channels, size)
    h = encoder(torch.randn(4, channels, size, size))
    assert h.shape == (4, encoder.out_dim) and h.dtype == torch.float32 and h.isfinite().all()
    h.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    twin = encoders.build(name, channels, size)
    twin.load_state_dict(encoder.state_dict())
    x = torch.randn(2, channels, size, size)
    assert torch.equal(twin.eval()(x), encoder.eval()(x))


@pytest.mark.parametrize("regions", [1, 2, 3])
@pytest.mark.parametrize("side", [(4, 4), (7, 5), (2, 1), (1, 1)])
def test_region_means_are_adaptive_average_pooling(regions: int, side: tuple[int, int]):
    x = torch.randn(2, 3, *side)
    means = encoders.RegionMean(regions)(x).unflatten(1, (regions, regions, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(means, torch.nn.functional.adaptive_avg_pool2d(x, regions))


@pytest.mark.parametrize("name", ENCODERS)
def test_regions_change_no_weight_and_average_to_the_whole(name: str):
    whole, parts = (encoders.build(name, 3, 32, regions).eval() for regions in (1, 2))
    parts.load_state_dict(whole.state_dict())
    assert parts.out_dim == 4 * whole.out_dim
    assert encoders.embedding_dim(name, 3, 32, EmbeddingSettings(regions=2)) == parts.out_dim
    x = torch.randn(2, 3, 32, 32)
    average = torch.cat([part.unflatten(1, (4, -1)).mean(dim=1) for part in split_maps(parts(x), parts)], dim=1)
    torch.testing.assert_close(average, whole(x), atol=1e-5, rtol=1e-4)


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


def test_resnets_stem_follows_the_size_of_the_images():
    small, large = (encoders.build("resnet18", 3, size) for size in (32, 64))
    assert small.conv1.stride == (1, 1) and isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2) and isinstance(large.maxpool, nn.MaxPool2d)


def test_unknown_encoder_is_offered_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'resnet18'"):
        encoders.build("resnt18", 3, 32)


def test_forward_flops_are_those_counted_by_hand():
    """A view through the light CNN at 32 px and its projector: two operations for each multiply-add."""
    encoder = encoders.CNN(3, widths=(4, 8))
    method = METHODS["simclr"](encoder, METHODS["simclr"].Settings(hidden=16, projection=8))
    convolutions = 32 * 32 * 4 * 27 + 16 * 16 * 8 * 36  # the pool comes after the first
    projector = encoder.out_dim * 16 + 16 * 8
    logits = 4 * 4 * 8 / 4  # of the two images and two views it is counted on, by view
    assert forward_flops(method, 2, 3, 32, 32) == 2 * (convolutions + projector + logits)
