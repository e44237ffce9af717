"""Checks of the settings: stem, blur, temperature, learning rate, augmentation."""

from __future__ import annotations

import torch
from torch import nn

from crlf import encoders
from crlf.augmentation import Views
from crlf.evaluation.doctor.case import Case, Finding
from crlf.evaluation.doctor.training import logged
from crlf.methods import METHODS
from crlf.metrics.geometry import agreement
from crlf.normalisation import Normalisation
from crlf.optim import LINEAR
from crlf.recipe import RECIPES
from crlf.runtime.seeding import generator

SMALLEST_MAP, SMALLEST_GRID = 2, 4  # smallest side of the last feature maps, and of the grid of a ViT's patches
SHARP = 48  # pixels a side; blurring smaller views removes the details that matter
TEMPERATURES = (0.04, 0.7)  # the literature's are 0.07 (MoCo) to 0.5 (SimCLR)
RATES = {
    "muon": (0.002, 0.2),
    "adam": (3e-5, 1e-2),
    "adamw": (3e-5, 1e-2),
    "sgd": (5e-3, 3.0),
    "lars": (0.02, 100.0),
}  # of the learning rate after scaling by the batch size; published values and ours are well inside
USUAL = {"muon": 0.02, "adam": 3e-4, "adamw": 3e-4, "sgd": 0.06, "lars": 0.3}  # as flags
ALIKE = 0.7  # agreement of the pixels of two views, above which pairing is too easy; default views have 0.3 to 0.5
APART = 0.4  # agreement of two views after training, below which they have too little in common; usually 0.6 or more
SAMPLE = 256  # images whose views are compared
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.25, "grayscale": 0.5}  # at most


def stem(case: Case) -> Finding | None:
    """First layers that shrink small images too much."""
    (channels, side), recipe = case.view_shape, case.recipe
    places, cuts = places_left(recipe.encoder, channels, side)
    least = SMALLEST_GRID if cuts else SMALLEST_MAP
    if places >= least:
        return None
    kind = "patches" if cuts else "last maps"
    return Finding(
        "stem",
        f"the stem of {recipe.encoder} is too coarse for views of {side} px",
        f"its {kind} are only {places} × {places}, below {least} × {least}",
        "--encoder resnet18, whose stem adapts to the size of the images, or --resolution 1 for larger views",
    )


def places_left(name: str, channels: int, side: int) -> tuple[int, bool]:
    """Side of the last feature maps from a convolution with kernel above 1, and whether there is only one such."""
    net, sides = encoders.build(name, channels, side).eval(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.register_forward_hook(lambda _, __, maps: sides.append(min(maps.shape[2:])))
    with torch.no_grad():
        net(torch.zeros(1, channels, side, side))
    return (sides[-1] if sides else side), len(sides) == 1


def blur(case: Case) -> Finding | None:
    """Blur on images too small for it."""
    views, side = case.recipe.augmentation, case.view_shape[1]
    if not views.blur or side >= SHARP:
        return None
    return Finding(
        "blur",
        f"views of {side} px are blurred",
        f"{100 * views.blur:g} % of them, with a standard deviation of up to {views.blur_max:g} px; SimCLR uses no "
        "blur at 32 px (appendix B.9)",
        "--blur 0",
    )


def temperature(case: Case) -> Finding | None:
    """A temperature outside the range used in the literature."""
    value = getattr(case.recipe.head, "temperature", None)
    low, high = TEMPERATURES
    if value is None or low <= value <= high:
        return None
    usual = METHODS[case.recipe.method].Settings().temperature
    effect = "all negatives count nearly alike" if value > high else "only the nearest negative of an image counts"
    return Finding(
        "temperature",
        f"temperature {value:g} is {'high' if value > high else 'low'}",
        f"outside {low:g} to {high:g}: {effect}{cosines(case)}",
        f"--temperature {usual:g}",
    )


def cosines(case: Case) -> str:
    """The final cosines of the features, if they were logged."""
    rows = [row for row in case.run.log() if row.get("z_positive_cosine") is not None]
    if not rows:
        return ""
    positive, negative = (rows[-1][f"z_{kind}_cosine"] for kind in ("positive", "negative"))
    return f"; the final cosine was {positive:.2f} for two views of an image and {negative:.2f} for two images"


def learning_rate(case: Case) -> Finding | None:
    """A learning rate outside the range that works with the optimizer and the batch size."""
    settings, recipe = case.recipe.optim, case.recipe
    rate = settings.for_batch(recipe.batch_size).lr
    low, high = RATES[settings.optimizer]
    if low <= rate <= high:
        return None
    linear = settings.optimizer in LINEAR and settings.lr_per
    how = f" ({settings.lr:g} × {recipe.batch_size} / {settings.lr_per})" if linear else ""
    return Finding(
        "learning_rate",
        f"learning rate {rate:g} is {'high' if rate > high else 'low'} for {settings.optimizer}",
        f"{rate:g}{how} is outside {low:g} to {high:g}; the loss went {course(case)}",
        f"--lr {USUAL[settings.optimizer]:g}",
    )


def course(case: Case) -> str:
    """The first and the last loss."""
    return f"from {logged(case)[0]:.3g} to {case.losses[-1]:.3g}"


def weak_augmentation(case: Case) -> Finding | None:
    """Views of an image that are too similar in their pixels."""
    images = case.splits[0].images
    order = torch.randperm(len(images), generator=generator("cpu", "doctor", case.recipe.seed))[:SAMPLE]
    make_view = Views(case.recipe.augmentation, case.recipe.normalisation)
    stream = generator("cpu", "doctor views", case.recipe.seed)
    alike = agreement(*(make_view(images[order], stream).flatten(1) for _ in range(2)))
    if alike < ALIKE:
        return None
    return Finding(
        "weak_augmentation",
        "the views of an image are nearly the same: their pixels are enough to match them",
        f"the agreement of the pixels of two views is {alike:.2f}, above {ALIKE}; the default views have "
        f"{agreement(*default_views(images[order], case.recipe.normalisation)):.2f}",
        "--crop-min 0.2 --jitter 0.8 --grayscale 0.2",
    )


def default_views(images: torch.Tensor, normalisation: Normalisation) -> list[torch.Tensor]:
    """Two views with the default settings, uint8 (B, C, H, W) -> float (B, C h w) each."""
    if images.shape[1] != 3:  # repeat the first channel as red, green and blue
        images = images[:, :1].expand(-1, 3, -1, -1)
        normalisation = Normalisation(mean=normalisation.mean[:1], std=normalisation.std[:1])
    make_view, stream = Views(RECIPES["default"].augmentation, normalisation), generator("cpu", "doctor views")
    return [make_view(images, stream).flatten(1) for _ in range(2)]


def strong_augmentation(case: Case) -> Finding | None:
    """Views of an image that training could not bring together."""
    views, which = case.recipe.augmentation, "z" if "z_agreement" in case.health else "h"
    settings = [f"{name} {getattr(views, name):g}" for name, most in STRONG.items() if getattr(views, name) > most]
    settings += [f"crop_min {views.crop_min:g}"] * (views.crop_min < 0.05)
    alike = case.health[f"{which}_agreement"]
    if not settings or alike >= APART:
        return None
    return Finding(
        "strong_augmentation",
        f"the views of an image have too little in common: {', '.join(settings)}",
        f"the agreement of two views after training is {alike:.2f} in {which}, below {APART} (1: the same)",
        "--crop-min 0.2 --brightness 0.4 --contrast 0.4 --saturation 0.4 --hue 0.1 --grayscale 0.2",
    )
