"""DIET against torch's own cross-entropy and a loop, at chance, and what it is told of the batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from references import draw, mean, near
from torch import Tensor

import crlf
from crlf.encoders import CNN
from crlf.errors import InputError
from crlf.methods import diet as module
from crlf.methods.diet import DIET, DIETSettings, diet
from crlf.recipe import Recipe
from crlf.runs.run import CHECKPOINT


def diet_loop(logits: list[list[list[float]]], rows: list[int], smoothing: float) -> float:
    V, B, N = len(logits), len(logits[0]), len(logits[0][0])
    terms = []
    for v in range(V):
        for b in range(B):
            total = math.log(sum(math.exp(logits[v][b][n]) for n in range(N)))
            target = [smoothing / N + (1 - smoothing) * (n == rows[b]) for n in range(N)]
            terms.append(-sum(target[n] * (logits[v][b][n] - total) for n in range(N)))
    return mean(terms)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_diet_equals_a_loop(views: int, smoothing: float):
    logits, rows = draw(views, 4, 7), torch.tensor([6, 0, 3, 1])
    assert near(diet(logits, rows, smoothing), diet_loop(logits.tolist(), rows.tolist(), smoothing))
    published = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)  # of the authors' own program, a view at a time
    assert near(diet(logits, rows, smoothing), mean([published(view, rows).item() for view in logits]))


def test_diet_at_chance():
    assert near(diet(torch.zeros(2, 3, 11).double(), torch.arange(3), 0.8), math.log(11))


def test_it_has_a_class_for_each_image_and_is_told_which_are_there(narrow: None, tmp_path: Path, monkeypatch):
    told: list[Tensor] = []
    monkeypatch.setattr(
        module, "diet", lambda logits, rows, smoothing: (told.append(rows), diet(logits, rows, smoothing))[1]
    )
    recipe = Recipe(method="diet", data="shapes", subset=48, batch_size=16, views=2, epochs=2, precision="float32")
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    steps = [rows for rows in told if len(rows) == 16][-6:]  # without the trials of the cost
    for epoch in (steps[:3], steps[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(48))
    assert run.tensors(CHECKPOINT)["method"]["classifier.weight"].shape[0] == 48
    assert run.array("loss.npy")[1] < run.array("loss.npy")[0]


def test_too_many_images_are_refused():
    method = DIET(CNN(3, widths=(4, 8, 8), read=2), DIETSettings())
    with pytest.raises(InputError, match="has a class for each image: it takes 200,000 at most, not 200,001"):
        method.meet(200_001)
