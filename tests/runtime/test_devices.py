"""What a device needs, and random numbers that are a function of what they are for."""

from __future__ import annotations

import pytest
import torch

from crlf.runtime import devices
from crlf.runtime.devices import dtype_of
from crlf.runtime.seeding import generator

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_only_where_that_is_faster(fast: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda device: fast)
    assert dtype_of("auto", CPU) == (torch.bfloat16 if fast else torch.float32)
    assert dtype_of("bf16", CPU) == torch.bfloat16 and dtype_of("float32", CPU) == torch.float32


def test_near_keys_give_unrelated_numbers():
    """Also those whose parts, one after another, read the same."""
    keys = [("views", 1, 11), ("views", 11, 1), ("views", 1, 12), ("order", 1, 11), ("views", 111)]
    drawn = torch.stack([torch.rand(2000, generator=generator("cpu", *key)) for key in keys])
    off = torch.corrcoef(drawn) - torch.eye(len(keys))
    assert off.abs().max() < 0.1
    assert torch.equal(drawn[0], torch.rand(2000, generator=generator("cpu", "views", 1, 11)))
