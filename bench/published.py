"""CIFAR-10 results that others have published, as their sources give them, for the leaderboard.

`figures` are percent of the test images, and hold only what the source gives. `invalid` says why a result cannot be
compared with the others.
"""

from __future__ import annotations

from dataclasses import dataclass

DKOBAK = "https://github.com/dkobak/simclr-cifar10"
SOLO = "https://github.com/vturrisi/solo-learn"
LIGHTLY = "https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html"
EMP = "https://arxiv.org/abs/2304.03977"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A result of others.

    Args:
        who: whose it is.
        views: views of an image in an epoch; 0 if the source does not give them.
        minutes: of training; 0 if the source does not give them.
        like: the recipe of CRLF whose network and views cost as much, for the operations; empty if none does.
        figures: mean and standard deviation as text, by column.
    """

    who: str
    method: str
    encoder: str
    epochs: int
    source: str
    protocol: str
    figures: dict[str, str]
    views: int = 2
    minutes: float = 0.0
    hardware: str = ""
    seeds: str = ""
    like: str = ""
    invalid: str = ""


def online(method: str, accuracy: float, like: str = "") -> Published:
    return Published(
        who="solo-learn", method=method, encoder="ResNet-18", epochs=1000, source=SOLO, like=like,
        protocol="a linear layer that learns during the training", figures={"linear, plain": f"{accuracy:.1f}"},
    )  # fmt: skip


def dkobak(epochs: int, minutes: float, seeds: str, **figures: str) -> Published:
    return Published(
        who="dkobak", method="SimCLR", encoder="ResNet-18", epochs=epochs, source=DKOBAK, minutes=minutes,
        hardware="A100", seeds=seeds, like="simclr-r18", protocol="linear layer; kNN with k = 10, cosine",
        figures={f"{key}, plain": value for key, value in figures.items()},
    )  # fmt: skip


def lightly(method: str, epochs: int, minutes: float, knn: float, views: int = 2) -> Published:
    return Published(
        who="lightly", method=method, encoder="ResNet-18", epochs=epochs, source=LIGHTLY, minutes=minutes,
        hardware="A6000", views=views, protocol="kNN with k = 200", figures={"kNN, plain": f"{knn:.1f}"},
        invalid="the best of all epochs, chosen on the test images",
    )  # fmt: skip


def emp(epochs: int, accuracy: float) -> Published:
    return Published(
        who="its paper", method="EMP-SSL", encoder="ResNet-18", epochs=epochs, source=EMP, views=0,
        protocol="linear layer on features averaged over many crops (abstract)", figures={"linear": f"{accuracy:.1f}"},
    )  # fmt: skip


PUBLISHED = [
    dkobak(100, 20, "several", linear="85.6 ± 0.2", kNN="83.2 ± 0.2"),
    dkobak(500, 99, "several", kNN="90.3 ± 0.3"),
    dkobak(1000, 1000 * 11.9 / 60, "", linear="91.7", kNN="91.4"),
    Published(
        who="dkobak", method="SimCLR", encoder="ResNet-50", epochs=1000, source=DKOBAK, minutes=1000 * 36.9 / 60,
        hardware="A100",
        protocol="linear layer; kNN with k = 10, cosine", figures={"linear, plain": "93.4", "kNN, plain": "92.6"},
        like="simclr-r50",
    ),
    Published(
        who="its paper", method="SimCLR", encoder="ResNet-50", epochs=1000, source="https://arxiv.org/abs/2002.05709",
        protocol="logistic regression, appendix B.9", figures={"linear, plain": "94.0"}, like="simclr-r50",
    ),
    online("SimCLR", 90.74, "simclr-r18"),
    online("SimSiam", 90.51),
    online("NNCLR", 91.88),
    online("VICReg", 92.07, "vicreg-r18"),
    online("Barlow Twins", 92.10, "barlow-r18"),
    online("BYOL", 92.58, "byol-r18"),
    online("MoCo v2+", 92.94),
    online("MoCo v3", 93.10, "mocov3-r18"),
    online("All4One", 93.24),
    lightly("SimCLR", 200, 87, 84.8),
    lightly("SimCLR", 800, 331, 87.9),
    lightly("FastSiam", 200, 164, 90.6, views=4),
    lightly("BYOL", 800, 401, 91.0),
    emp(1, 85.1),
    emp(10, 91.5),
    Published(
        who="the original project", method="SimCLR", encoder="light CNN", epochs=10, source="", hardware="a Mac",
        protocol="logistic regression",
        figures={"linear, plain": "45.3"},
    ),
    Published(
        who="sthalles", method="SimCLR", encoder="ResNet-18", epochs=100, source="https://github.com/sthalles/SimCLR",
        protocol="logistic regression; the network has the stem of ImageNet", figures={"linear, plain": "69.8"},
    ),
    Published(
        who="p3i0t", method="SimCLR", encoder="", epochs=1000, source="https://github.com/p3i0t/SimCLR-CIFAR10/issues/8",
        protocol="a linear layer", figures={"linear, plain": "92.9"},
        invalid="the probe never froze the encoder, so labels trained it",
    ),
]  # fmt: skip
