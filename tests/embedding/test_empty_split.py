"""An empty split, as of a set without labels, through networks of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crlf import encoders
from crlf.embedding.embed import embed_images
from crlf.normalisation import Normalisation

BY = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TIMM = (
    *("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "mobilevit_xxs", "tiny_vit_5m_224", "lambda_resnet26t"),
    *("maxvit_rmlp_pico_rw_256", "pvt_v2_b0", "xcit_nano_12_p16_224", "test_vit", "test_byobnet", "convnext_atto"),
)


def through(name: str, side: int) -> None:
    encoder = encoders.Frozen(encoders.build(name, 3, side), mirror=True)
    rows = embed_images(encoder, torch.zeros(0, 3, side, side, dtype=torch.uint8), BY)
    assert rows.shape == (0, encoder.out_dim) and rows.dtype == np.float32


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit_tiny", "timm:test_vit", "timm:test_byobnet"])
def test_no_images_give_no_rows(name: str):
    through(name, 32 if name != "timm:test_vit" else 160)


@pytest.mark.long
@pytest.mark.parametrize("name", TIMM)
def test_no_images_give_no_rows_by_any_model_of_timm(name: str):
    through(f"timm:{name}", 256 if "256" in name or "lambda" in name else 224)


def test_gradients_of_narrow_maps_of_three_dimensions_are_finite_in_bf16():
    torch.manual_seed(0)
    net = encoders.build("timm:lambda_resnet26t", 3, 64).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = net(torch.randn(4, 3, 64, 64))
    h.float().pow(2).mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_weights_of_five_dimensions_keep_their_layout():
    net = encoders.build("timm:lambda_resnet26t", 3, 64)
    assert any(weight.ndim == 5 for weight in net.parameters())
    wide = [weight for weight in net.parameters() if weight.ndim == 4 and min(weight.shape[1:3]) > 1]
    assert wide and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)
