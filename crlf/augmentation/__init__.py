"""Random views of a batch of images, as a few batched tensor operations.

The operations that are separable in space (crop, resize, flip, blur) form one matrix for the rows and one for the
columns of an image. The operations that are linear in colour (brightness, contrast, saturation, hue, grayscale,
normalisation) form one (C, C + 1) matrix. So a view costs three small matrix products on any device, whatever is drawn:

    view = colour(rows @ image @ columns^T)

A quarter turn is a flip, which the matrices include, and a transpose of the result.

Parameters follow the distributions of torchvision's RandomResizedCrop, RandomHorizontalFlip, RandomVerticalFlip,
ColorJitter, RandomGrayscale and GaussianBlur. The pixels equal those of its functions, with three differences: they
are clamped to [0, 1] once at the end, not after each colour step; hue is a rotation about the grey axis of RGB, while
torchvision goes through HSV; and blur comes before the colour steps, so that contrast uses the mean of the blurred
view.

Shapes: B images, C channels, H and W their height and width, h and w those of the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crlf.augmentation.matrices import Parameters, blur_matrix, colour_matrix, resize_matrix
from crlf.defaults import unasked
from crlf.errors import InputError
from crlf.normalisation import Normalisation, constants

NUMBERS = 35  # uniform random numbers for a view, drawn in one call, since a small call costs as much
POSITION = 2  # additional ones if views are flipped vertically or turned
MOST = 64  # largest number of small views of an image


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How a view is drawn. Probabilities and areas are fractions, sizes are pixels."""

    resolution: float = unasked(0.75)
    """Height and width of a view, as a share of the image's: 24 pixels of 32 take half the time of 32."""
    crop_min: float = unasked(0.2)
    """Smallest area of a crop."""
    crop_max: float = 1.0
    """Largest area of a crop."""
    local_views: int = 0
    """Small views of each image in a step, beside the others: they are compared with those, and nothing with them."""
    local_resolution: float = 0.5
    """Height and width of a small view, as a share of the image's."""
    local_crop_min: float = 0.05
    """Smallest area of a small view's crop."""
    local_crop_max: float = 0.4
    """Largest area of a small view's crop."""
    flip: float = unasked(0.5)
    """Probability of a horizontal flip."""
    vertical_flip: float = unasked(0.0)
    """Probability of a vertical flip."""
    turn: float = unasked(0.0)
    """Probability of a quarter turn, of square images; with both flips and this at 0.5 each of the eight positions of a
    square is as likely."""
    jitter: float = unasked(0.8)
    """Probability that brightness, contrast, saturation and hue change."""
    brightness: float = unasked(0.4)
    """Strength of the brightness change: a factor in 1 ± this."""
    contrast: float = unasked(0.4)
    """Strength of the contrast change: a factor in 1 ± this."""
    saturation: float = unasked(0.4)
    """Strength of the saturation change: a factor in 1 ± this."""
    hue: float = unasked(0.1)
    """Strength of the hue change: ± this, in turns of the colour wheel, at most 0.5."""
    grayscale: float = unasked(0.2)
    """Probability of a grey view."""
    blur: float = unasked(0.0)
    """Probability of a Gaussian blur."""
    blur_kernel: int = unasked(3)
    """Its width in pixels, odd."""
    blur_min: float = unasked(0.1)
    """Its smallest standard deviation, in pixels."""
    blur_max: float = unasked(2.0)
    """Its largest standard deviation, in pixels."""
    clamp: bool = True
    """Cut pixels that the colour steps make darker than black or brighter than white, as torchvision does."""

    def __post_init__(self) -> None:
        for name in ("crop_min", "flip", "vertical_flip", "turn", "jitter", "grayscale", "blur"):
            _check(0 <= getattr(self, name) <= 1, name, "in 0..1", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            _check(0 <= getattr(self, name) < math.inf, name, "0 or more", getattr(self, name))
        for low, high in (("crop_min", "crop_max"), ("local_crop_min", "local_crop_max")):
            _check(getattr(self, low) > 0, low, "above 0", getattr(self, low))
            _check(getattr(self, high) <= 1, high, "at most 1", getattr(self, high))
            rule = f"in 0..{high}, which is {getattr(self, high):g}"
            _check(getattr(self, low) <= getattr(self, high), low, rule, getattr(self, low))
        _check(0 <= self.local_views <= MOST, "local_views", f"in 0..{MOST}", self.local_views)
        _check(0 <= self.hue <= 0.5, "hue", "in 0..0.5", self.hue)
        for name in ("resolution", "local_resolution"):
            _check(0.1 <= getattr(self, name) <= 4, name, "in 0.1..4", getattr(self, name))
        _check(self.blur_kernel % 2 == 1 and self.blur_kernel > 0, "blur_kernel", "odd", self.blur_kernel)
        _check(0 < self.blur_min <= self.blur_max < math.inf, "blur_min", "in 0..blur_max", self.blur_min)

    @property
    def numbers(self) -> int:
        """Uniform numbers that a view takes."""
        return NUMBERS + POSITION * bool(self.vertical_flip or self.turn)

    @property
    def of_local(self) -> ViewSettings:
        """How a small view is drawn."""
        low, high = self.local_crop_min, self.local_crop_max
        return replace(self, resolution=self.local_resolution, crop_min=low, crop_max=high, local_views=0)


class Views:
    """Draws views of each image; called with the same generator state it gives the same bits."""

    def __init__(self, settings: ViewSettings, normalisation: Normalisation):
        self.settings, self.local, self.normalisation = settings, settings.of_local, normalisation
        self.apply = apply  # crlf.training.compile puts a faster one here

    def __call__(self, images: Tensor, generator: torch.Generator, count: int = 1) -> Tensor:
        """A view of each image, then another of each, V = count times; no small ones.

        uint8 (B, C, H, W) and a generator on the same device -> float32 (V B, C, h, w), channels last.
        """
        p = draw(images.shape, self.settings, generator, count)
        return self.apply(images, p, self.settings, self.normalisation)

    def numbers(self, batch: int, views: int, generator: torch.Generator) -> Tensor:
        """All random numbers for V = views large views and L small views of each image of a batch.

        float (n, B (V + L)), uniform in 0..1, where n is `ViewSettings.numbers`; those of the large views come first.
        """
        count = batch * (views + self.settings.local_views)
        return torch.rand(self.settings.numbers, count, generator=generator, device=generator.device)

    def of_part(self, images: Tensor, views: int, numbers: Tensor, batch: int, part: range) -> tuple[Tensor, ...]:
        """Several views of the images of a part of a batch, equal up to rounding to those in the whole batch.

        Args:
            images: uint8 (R, C, H, W), the images of the part.
            views: V, the number of large views.
            numbers: `numbers` of the whole batch, on the device of the images.
            batch: B, the number of images in the whole batch.
            part: the positions of these R images in the batch.

        Returns:
            V large views, each float32 (R, C, h, w), followed by the small views.
        """
        of_views, of_local = numbers[:, : batch * views], numbers[:, batch * views :]
        found = self._of_part(images, views, of_views, self.settings, part)
        if self.settings.local_views:
            found += self._of_part(images, self.settings.local_views, of_local, self.local, part)
        return found

    def _of_part(
        self, images: Tensor, views: int, numbers: Tensor, settings: ViewSettings, part: range
    ) -> tuple[Tensor, ...]:
        p = parameters(images.shape, settings, numbers).of(slice(views * part.start, views * part.stop))
        return self.apply(images, p, settings, self.normalisation).chunk(views)

    def of_batch(self, images: Tensor, views: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As `of_part`, of a whole batch: uint8 (B, C, H, W) and a generator on the same device."""
        numbers = self.numbers(len(images), views, generator)
        return self.of_part(images, views, numbers, len(images), range(len(images)))


def draw(shape: torch.Size, settings: ViewSettings, generator: torch.Generator, count: int = 1) -> Parameters:
    """Draw the parameters of V = count views for each image of a batch of this shape (B, C, H, W)."""
    numbers = torch.rand(settings.numbers, shape[0] * count, generator=generator, device=generator.device)
    return parameters(shape, settings, numbers)


def parameters(shape: torch.Size, s: ViewSettings, u: Tensor) -> Parameters:
    """Convert uniform numbers (s.numbers, B V) to the parameters of the views of images of shape (..., C, H, W)."""
    flip, jitter, gray, blur, sigma = u[22:27]
    bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in (s.brightness, s.contrast, s.saturation)]
    low, high = (constants(ends, u)[:, None] for ends in zip(*bounds, (-s.hue, s.hue), strict=True))  # (4, 1)
    unchanged = constants((1.0, 1.0, 1.0, 0.0), u)[:, None]
    brightness, contrast, saturation, hue = torch.where(jitter < s.jitter, u[27:31] * (high - low) + low, unchanged)
    return Parameters(
        *_crop_boxes(shape[-2], shape[-1], (s.crop_min, s.crop_max), u[:22]), flip < s.flip,
        order=u[31:NUMBERS].T.argsort(dim=1),
        brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
        gray=gray < s.grayscale,
        sigma=torch.where(blur < s.blur, sigma * (s.blur_max - s.blur_min) + s.blur_min, 0.0),
        upside_down=u[NUMBERS] < s.vertical_flip if s.vertical_flip else None,
        turned=u[NUMBERS + 1] < s.turn if s.turn else None,
    )  # fmt: skip


def _crop_boxes(H: int, W: int, areas: tuple[float, float], u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torchvision's RandomResizedCrop: ten tries at an area and an aspect ratio, then the largest central crop.

    Args:
        areas: the smallest and the largest, as shares of the image's.
        u: (22, B), uniform in 0..1.

    Returns:
        top, left, height and width in whole pixels, float (B,).
    """
    smallest, largest = areas
    area = (u[:10] * (largest - smallest) + smallest) * (H * W)
    ratio = ((u[10:20] * 2 - 1) * math.log(4 / 3)).exp()  # log-uniform in 3/4..4/3
    width, height = (area * ratio).sqrt_().round_(), (area / ratio).sqrt_().round_()  # (10, B)
    fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
    found, first = fits.int().max(dim=0, keepdim=True)  # the first that fits
    found = found[0] == 1
    width = torch.where(found, width.gather(0, first)[0], float(min(W, round(H * 4 / 3))))
    height = torch.where(found, height.gather(0, first)[0], float(min(H, round(W * 4 / 3))))
    top, left = u[20] * (H - height + 1), u[21] * (W - width + 1)
    top = torch.where(found, top, (H - height) / 2).floor()
    left = torch.where(found, left, (W - width) / 2).floor()
    return top, left, height, width


def apply(images: Tensor, p: Parameters, settings: ViewSettings, normalisation: Normalisation) -> Tensor:
    """Make the views that the parameters describe: uint8 (B, C, H, W) -> float32 (V B, C, h, w), channels last."""
    B, C, H, W = images.shape
    h, w = (view_size(side, settings) for side in (H, W))
    flip = p.flip if p.turned is None else p.flip ^ p.turned  # a quarter turn is a flip, and then a transpose
    rows = resize_matrix(p.top, p.height, H, h, p.upside_down)  # (B V, h, H)
    columns = resize_matrix(p.left, p.width, W, w, flip)  # (B V, w, W)
    if settings.blur:
        rows = blur_matrix(p.sigma, h, settings.blur_kernel) @ rows
        columns = blur_matrix(p.sigma, w, settings.blur_kernel) @ columns
    x = images.transpose(1, 2).float().flatten(2)  # (B, H, C W), still in 0..255
    x = rows.view(B, -1, H) @ x  # (B, V h, C W): one product for all views of an image, and no copy for the channels
    x = x.view(-1, h * C, W) @ columns.mT  # (B V, h C, w)
    x = x.view(-1, h, C, w).transpose(1, 2)  # (B V, C, h, w)
    if p.turned is not None:
        x = torch.where(p.turned[:, None, None, None], x.mT, x)
    x = x.flatten(2)  # (B V, C, h w)
    matrix, offset = colour_matrix(p, x.mean(dim=2) / 255, normalisation)
    x = torch.baddbmm(offset[:, :, None], matrix / 255, x)
    if settings.clamp:
        for c, (mean, std) in enumerate(zip(*normalisation.numbers(C), strict=True)):
            x[:, c].clamp_((0 - mean) / std, (1 - mean) / std)  # tensors as bounds take fifty times as long
    x = x.view(B, -1, C, h, w)  # (B, V, C, h, w)
    return x.permute(1, 0, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)  # (V B, C, h, w)


def view_size(side: int, settings: ViewSettings) -> int:
    """The side of a view, in pixels, of an image with this side."""
    return max(1, round(side * settings.resolution))


def _check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {rule}, not {value}")
