"""DINO's distributions and loss against loops; its centre comes a step late."""

from __future__ import annotations

import math

import pytest
import torch
from references import cross_entropy_loop, draw, mean, near
from small_methods import SIZE, small, views_of

from crlf.methods.dino import cross_entropy, sharpened


def test_dino_centres_and_sharpens():
    teacher, centre = draw(5, 4), draw(4, seed=1)
    for row, out in zip(teacher, sharpened(teacher, centre, 0.3), strict=True):
        weights = [math.exp((t - c) / 0.3) for t, c in zip(row.tolist(), centre.tolist(), strict=True)]
        assert out.tolist() == pytest.approx([w / sum(weights) for w in weights])
    same = draw(1, 4).expand(5, 4)  # a teacher that says the same of all: its centre takes that away
    torch.testing.assert_close(sharpened(same, same[0], 0.01), torch.full((5, 4), 0.25, dtype=torch.float64))


def test_dinos_centre_is_the_running_mean_and_comes_a_step_late():
    method = small("dino", centre_momentum=0.75)
    expected = torch.zeros(SIZE)
    for seed in range(3):
        views = views_of(seed=seed)
        held = {key: value.clone() for key, value in method.target.state_dict().items()}
        teacher = method.target(views)  # (V, B, M)
        method.target.load_state_dict(held)
        student = method.prototypes(method.projector(method.encoder(torch.cat(views)))).unflatten(0, (2, 8))
        targets = sharpened(teacher, expected, 0.04)
        loss = mean([cross_entropy(student[i], targets[1 - i], 0.1).item() for i in range(2)])
        assert method(views)[0].item() == pytest.approx(loss, rel=1e-4)
        expected = 0.75 * expected + 0.25 * teacher.mean(dim=(0, 1))
        torch.testing.assert_close(method.centre, expected)


def test_cross_entropy_equals_a_loop():
    scores, target = draw(4, 3), draw(4, 3, seed=1).softmax(dim=1)
    assert near(cross_entropy(scores, target, 0.2), cross_entropy_loop(scores, target, 0.2))
