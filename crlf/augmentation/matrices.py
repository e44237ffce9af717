"""The matrices of a view: of its rows, its columns and its colours, from the parameters that were drawn.

Shapes: B views, C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crlf.normalisation import Normalisation, constants

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's digits
CONTRAST = 1  # its place among the four colour steps


class Parameters(NamedTuple):
    """The parameters of a batch of B views; with V views per image, each is (B V,), views of an image side by side."""

    top: Tensor  # (B,) the crop's first row, pixels
    left: Tensor  # (B,)
    height: Tensor  # (B,)
    width: Tensor  # (B,)
    flip: Tensor  # (B,) bool
    order: Tensor  # (B, 4) which colour step comes first, second, ...
    brightness: Tensor  # (B,) factor, 1 leaves the image as it is
    contrast: Tensor  # (B,) factor
    saturation: Tensor  # (B,) factor
    hue: Tensor  # (B,) turns, 0 leaves the image as it is
    gray: Tensor  # (B,) bool
    sigma: Tensor  # (B,) standard deviation of the blur, pixels; 0 for none
    upside_down: Tensor | None = None  # (B,) bool; None where no view is
    turned: Tensor | None = None  # (B,) bool, a quarter of a turn to the left, after the flips; None where no view is

    def of(self, rows: slice) -> Parameters:
        """The parameters of some of the views."""
        return Parameters(*(None if values is None else values[rows] for values in self))  # type: ignore[arg-type]


def resize_matrix(start: Tensor, length: Tensor, source: int, target: int, flip: Tensor | None = None) -> Tensor:
    """Weights that resize the pixels [start, start + length) of a line of `source` pixels to `target` pixels.

    Bilinear with antialiasing: a triangle as wide as the larger of a source and a target pixel, cut at the edges of the
    crop and normalised. It equals torch's `interpolate(mode="bilinear", antialias=True)` of the crop.

    Args:
        start, length: float (B,), whole pixels.
        flip: bool (B,), the lines whose target is reversed; None for no line.

    Returns:
        float (B, target, source); each row sums to 1.
    """
    pixel = torch.arange(source, device=start.device) + 0.5
    place = torch.arange(target, device=start.device) + 0.5
    scale = length / target  # (B,)
    step = scale if flip is None else torch.where(flip, -scale, scale)
    first = start if flip is None else torch.where(flip, start + length, start)
    centre = first[:, None] + place * step[:, None]  # (B, target)
    reach = scale.clamp(min=1)[:, None, None]
    weights = (reach - (pixel - centre[:, :, None]).abs_()).clamp_(min=0)  # (B, target, source)
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (B, source)
    weights *= inside[:, None]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def blur_matrix(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Weights that blur a line of `size` pixels with a Gaussian of `kernel` pixels, reflected at the ends.

    Args:
        sigma: float (B,), standard deviation in pixels; 0 leaves the line as it is.

    Returns:
        float (B, size, size); each row sums to 1.
    """
    reach = min(kernel // 2, size - 1)
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, kernel)
    weights = weights / weights.sum(dim=1, keepdim=True)
    source = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()  # (size, kernel)
    source = size - 1 - (size - 1 - source).abs()  # reflected at the far end as well
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    index = source.expand(len(sigma), -1, -1)
    return matrix.scatter_add_(2, index, weights[:, None].expand_as(index).contiguous())


def colour_matrix(p: Parameters, average: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Compose jitter in its drawn order, grayscale and normalisation: x -> matrix @ x + offset.

    Contrast needs the mean of the grey image after the preceding steps. These are affine, so this mean follows from the
    mean of the view before all steps.

    Args:
        average: float (B, C), the mean colour of each view, in 0..1.

    Returns:
        float (B, C, C) and (B, C), for pixels in 0..1.
    """
    B, C = average.shape
    eye = torch.eye(C, device=average.device)
    luma = constants(LUMA, average) if C == 3 else average.new_full((C,), 1 / C)
    gray = luma.expand(C, C)
    steps = torch.stack(
        [
            _scale(p.brightness, eye),
            _scale(p.contrast, eye),
            _scale(p.saturation, eye) + _scale(1 - p.saturation, gray) if C == 3 else eye.expand(B, C, C),
            hue_matrix(p.hue) if C == 3 else eye.expand(B, C, C),
        ],
        dim=1,
    )  # (B, 4, C, C)
    steps = steps.gather(1, p.order[:, :, None, None].expand(-1, -1, C, C))  # in each view's own order
    towards_gray = torch.where(p.order == CONTRAST, (1 - p.contrast)[:, None], 0.0)  # (B, 4)
    mean_colour = torch.cat([average, average.new_ones(B, 1)], dim=1)[:, :, None]  # (B, C + 1, 1)
    affine = torch.cat([eye, eye.new_zeros(C, 1)], dim=1).expand(B, -1, -1)  # (B, C, C + 1): matrix and offset
    for k in range(4):
        mean_gray = luma @ (affine @ mean_colour)  # (B, 1)
        affine = steps[:, k] @ affine
        affine[:, :, C] += towards_gray[:, k, None] * mean_gray
    mean, std = normalisation.of_channels(average, C)
    affine = torch.where(p.gray[:, None, None], gray, eye) / std[:, None] @ affine
    return affine[:, :, :C], affine[:, :, C] - mean / std


def hue_matrix(turns: Tensor) -> Tensor:
    """Rotation of RGB about its grey axis (Rodrigues' formula): float (B,) in turns -> (B, 3, 3).

    A third of a turn maps red to green and green to blue exactly, as in HSV.
    """
    angle = (2 * math.pi * turns)[:, None, None]
    eye = torch.eye(3, device=turns.device)
    cross = eye.roll(1, 0) - eye.roll(-1, 0)  # the cross product with (1, 1, 1)
    return angle.cos() * eye + (1 - angle.cos()) / 3 + angle.sin() / math.sqrt(3) * cross


def _scale(factors: Tensor, matrix: Tensor) -> Tensor:
    return factors[:, None, None] * matrix
