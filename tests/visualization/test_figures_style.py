"""Colours that can be told apart, by day and by night, also without red or green cones."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from crlf.visualization.figures import style

# Colours


CONES = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(colours: tuple[str, ...], cones: str) -> np.ndarray:
    """Colours as seen with these cones, in OKLab (Ottosson 2020), where a distance of 0.02 is just noticeable."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(CONES[cones]).T
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(np.clip(linear, 0, 1) @ np.array(to_lms).T) @ np.array(to_lab).T


def nearest(colours: tuple[str, ...], cones: str) -> float:
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(oklab(colours, cones), 2))


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize(("palette", "ground"), [(style.PALETTE, "white"), (style.NIGHT, "#161b22")])
def test_the_palette_can_be_told_apart(palette: tuple[str, ...], ground: str, cones: str):
    assert nearest(palette, cones) > 0.11
    assert nearest((*palette, ground), cones) > 0.11


def test_the_palette_check_can_fail():
    tab10 = tuple(matplotlib.color_sequences["tab10"])
    assert nearest(tab10, "no red") < 0.02


def test_a_hundred_classes_look_different():
    assert len({style.look(k) for k in range(100)}) == 100
    assert len({style.look(k)[0] for k in range(10)}) == len({style.look(k)[1] for k in range(10)}) == 10
