"""Whether training paid: the sentence, and the crops that tell it without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crlf
from crlf import cli
from crlf.augmentation import ViewSettings
from crlf.encoders import ENCODERS
from crlf.evaluation.crops import crops, found_by_crop
from crlf.evaluation.embedded import Embedded
from crlf.recipe import Recipe
from crlf.runs.payoff import ADVICE, payoff


def gain(points: float, spread: float = 2.0) -> dict[str, Any]:
    return {"difference": points / 100, "interval": [(points - spread) / 100, (points + spread) / 100]}


def scores(linear: float, knn: float, over_pixels: float = 30.0) -> dict[str, Any]:
    return {
        "linear_accuracy": 0.808, "knn_accuracy": 0.728, "pixels_linear_accuracy": 0.85, "pixels_knn_accuracy": 0.8,
        "linear_over_untrained": gain(linear), "knn_over_untrained": gain(knn),
        "linear_over_pixels": gain(over_pixels), "knn_over_pixels": gain(over_pixels),
    }  # fmt: skip


@pytest.mark.parametrize(
    "linear, knn, over_pixels, paid, what",
    [
        (20.7, 28.0, 30.0, True, "Training paid"),
        (1.0, 5.0, 30.0, True, "Training paid"),  # one beyond noise, and the other within
        (-2.1, -2.4, 30.0, False, "Training did not pay"),
        (5.0, -2.1, 30.0, False, "Training did not pay"),  # one is lost
        (1.0, -1.0, 30.0, None, "Training made no clear difference"),
        (20.7, 28.0, -4.2, False, "Training did not pay, raw pixels do better"),
    ],
)
def test_what_it_says(linear: float, knn: float, over_pixels: float, paid: bool | None, what: str):
    found = payoff(scores(linear, knn, over_pixels))
    assert found is not None and found.paid is paid and found.what == what
    assert found.sentence.startswith(f"{what}: linear probe 80.8 %, {abs(linear):.1f} points ")
    assert ("above" if linear > 0 else "below") in found.sentence.partition(" and ")[0]
    assert (ADVICE in found.sentence) == (not paid)
    assert ("raw pixels 85.0 %" in found.sentence) == (over_pixels < 0)


def test_a_loss_is_written_with_its_sign():
    found = payoff(scores(-2.1, -2.4))
    assert found is not None and "2.1 points below the same encoder untrained (−4.1 to −0.1)" in found.sentence


def test_the_gain_alone_is_enough():
    found = payoff({name: value for name, value in scores(3.5, 4.0).items() if name.endswith("over_untrained")})
    assert found is not None and found.paid and "linear probe, 3.5 points above" in found.sentence


def test_without_labels_crops_tell_it():
    found = payoff({"crops_accuracy": 0.9, "crops_over_untrained": gain(40.0)})
    assert found is not None and found.paid and found.numbers.startswith("finding an image by a crop of it 90.0 %")
    assert payoff({"linear_accuracy": 0.9}) is None and payoff({}) is None


class Mean(nn.Module):
    """What two dimensions of an image are: a crop of a plain image has them too."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


@pytest.fixture
def photographs(tmp_path: Path) -> np.ndarray:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, size=(60, 3, 4, 4), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 6, axis=2), 6, axis=3)


def test_a_crop_finds_its_image_where_the_encoder_sees_past_it(photographs: np.ndarray, monkeypatch):
    plain = torch.from_numpy(photographs[:, :, :1, :1].repeat(24, axis=2).repeat(24, axis=3))
    by = Recipe().resolved(crlf.data.given.both(photographs, Recipe().images, 0)[0]).normalisation
    crop = ViewSettings(resolution=1.0, jitter=0.0, grayscale=0.0)
    assert found_by_crop(Mean().eval(), plain, by, crop).mean() > 0.8
    lost = Mean().eval()
    lost.forward = lambda x: torch.ones(len(x), 3)  # type: ignore[method-assign]
    assert found_by_crop(lost, plain, by, crop).mean() < 0.1


def test_a_run_without_labels_is_told(photographs: np.ndarray, tmp_path: Path, few_weights, monkeypatch, capsys):
    monkeypatch.setitem(ENCODERS, "cnn", few_weights)
    np.save(tmp_path / "images.npy", photographs)
    run = tmp_path / "run"
    tiny = ["--epochs", "1", "--batch-size", "16", "--views", "2", "--device", "cpu"]
    assert cli.main(["pretrain", str(tmp_path / "images.npy"), "--out", str(run), *tiny]) == 0
    assert cli.main(["embed", str(run)]) == 0
    assert cli.main(["probe", str(run)]) == 0
    found = crlf.Run.open(run).scores
    assert {"crops_accuracy", "untrained_crops_accuracy", "crops_over_untrained"} <= found.keys()
    assert "chance" not in found and "60 images" in found["protocol"]["crops"]
    said = payoff(found)
    assert said is not None and said.sentence in capsys.readouterr().err.replace("\n", " ")
    assert cli.main(["probe", str(run), "--probes", "linear"]) == 0
    assert "have no labels" in capsys.readouterr().err


def test_the_own_encoder_is_held_against_the_one_of_before(monkeypatch):
    """Which of the two is which."""
    right = {"own": np.array([True] * 9 + [False]), "untrained": np.array([True] * 4 + [False] * 6)}
    none = np.zeros(0, dtype=np.int64)
    embedded = Embedded(np.zeros((10, 3), np.float32), none, np.zeros((0, 3), np.float32), none)
    embedded.__dict__.update(
        images=(torch.zeros(10, 3, 8, 8, dtype=torch.uint8),) * 2, encoder="own", recipe=Recipe(data="cifar10")
    )
    monkeypatch.setattr("crlf.evaluation.crops.untrained_encoder", lambda embedded: "untrained")
    monkeypatch.setattr("crlf.evaluation.crops.found_by_crop", lambda encoder, *rest: right[encoder])
    found = crops(embedded).scores
    assert found["crops_accuracy"] == 0.9 and found["untrained_crops_accuracy"] == 0.4
    assert found["crops_over_untrained"]["difference"] == 0.5 and found["crops_over_untrained"]["interval"][0] > 0
