"""The arithmetic of docs/scaling.md: its counts against torch's, its formulas against cases one sees through."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bench import scaling
from bench.scaling import CLUSTERS, IMAGENET, WEB
from crlf import encoders
from crlf.methods.base import training_flops
from crlf.methods.simclr import SimCLR, SimCLRSettings
from crlf.training.cost import saved_bytes


def test_counts_are_torchs():
    method = SimCLR(encoders.build("resnet50", 3, 224), SimCLRSettings(hidden=2048)).train()
    assert training_flops(method, 2, 3, 224, 224) == pytest.approx(IMAGENET.flops, rel=1e-3)
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(IMAGENET.weights, rel=1e-3)
    assert sum(isinstance(module, _BatchNorm) for module in method.modules()) == IMAGENET.norms
    views = list(torch.randn(2, 1, 3, 224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_bytes(lambda: method.project(views)[0])
    assert saved / 2 == pytest.approx(IMAGENET.activations, rel=0.01)


def test_the_a100_does_what_nvidia_measured():
    """2,470 images a second, of one view each, when nothing but the network counts."""
    one = dataclasses.replace(CLUSTERS[0], gpus=1)
    job = dataclasses.replace(IMAGENET, batch=256, views=1)
    assert 256 / scaling.step(job, one).network == pytest.approx(2470, rel=0.03)


def test_twice_the_gpus_and_the_batch():
    """The network's and the disks' share stays. The loss of a GPU's images takes twice as long, of all four times."""
    web = CLUSTERS[2]
    small, large = (
        scaling.step(dataclasses.replace(WEB, batch=n * 512), dataclasses.replace(web, gpus=n)) for n in (32, 64)
    )
    assert (large.network, large.disk) == pytest.approx((small.network, small.disk))
    assert large.loss == pytest.approx(2 * small.loss)
    assert scaling.step(WEB, web, whole_loss=True).loss == pytest.approx(64 * scaling.step(WEB, web).loss)


def test_one_gpu_sends_nothing():
    alone = scaling.step(IMAGENET, dataclasses.replace(CLUSTERS[0], gpus=1, latency=0.0))
    assert alone.norms == alone.projections == alone.gradients == 0


def test_a_slow_disk_is_the_step():
    slow = dataclasses.replace(CLUSTERS[0], disk=0.1)
    assert scaling.step(IMAGENET, slow).seconds == pytest.approx(4096 * 150_528 / 0.1e9)
    fast = scaling.step(IMAGENET, CLUSTERS[0])
    assert fast.seconds == pytest.approx(fast.network + fast.loss + fast.norms + fast.projections)


def test_gradients_are_seen_where_they_take_longer_than_the_backward_pass():
    slow = scaling.step(IMAGENET, dataclasses.replace(CLUSTERS[0], link=0.1))
    rest = slow.network + slow.loss + slow.norms + slow.projections
    assert slow.seconds == pytest.approx(rest + slow.gradients - slow.network * 2 / 3) and slow.seconds > rest


def test_the_memory_of_the_plans_fits():
    assert all(scaling.gigabytes(job, cluster) < cluster.memory for job, cluster in scaling.PLANS)
