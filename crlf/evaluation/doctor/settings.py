"""Checks of what was asked for: stem, blur, temperature, learning rate, augmentation."""

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

SMALLEST_MAP, SMALLEST_GRID = 2, 4  # places a side that the last maps, and the patches of a ViT, should have
SHARP = 48  # pixels a side; below, a blur takes what tells things apart
TEMPERATURES = (0.04, 0.7)  # the literature's are 0.07 (MoCo) to 0.5 (SimCLR)
RATES = {
    "muon": (0.002, 0.2),
    "adam": (3e-5, 1e-2),
    "adamw": (3e-5, 1e-2),
    "sgd": (5e-3, 3.0),
    "lars": (0.02, 100.0),
}  # of the learning rate that the batch was given; published ones and ours lie well inside
USUAL = {"muon": 0.02, "adam": 3e-4, "adamw": 3e-4, "sgd": 0.06, "lars": 0.3}  # as flags
ALIKE = 0.7  # agreement of two views' pixels above this is too easy: 0.3 to 0.5 with the default views
APART = 0.4  # agreement of what the loss compares below this, after training: 0.6 and more in sound runs
SAMPLE = 256  # images that views are drawn of
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.25, "grayscale": 0.5}  # at most


def stem(case: Case) -> Finding | None:
    """The first layers leave too few places of a small image."""
    (channels, side), recipe = case.view_shape, case.recipe
    places, cuts = places_left(recipe.encoder, channels, side)
    least = SMALLEST_GRID if cuts else SMALLEST_MAP
    if places >= least:
        return None
    kind = "patches" if cuts else "last maps"
    return Finding(
        "stem",
        f"the stem of {recipe.encoder} is too coarse for views of {side} px",
        f"its {kind} have {places} × {places} places, fewer than {least} × {least}",
        "--encoder resnet18, whose stem fits the size of the images, or --resolution 1 for larger views",
    )


def places_left(name: str, channels: int, side: int) -> tuple[int, bool]:
    """Places a side of the last maps that a convolution wider than a pixel gives, and whether it is the only one."""
    net, sides = encoders.build(name, channels, side).eval(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.register_forward_hook(lambda _, __, maps: sides.append(min(maps.shape[2:])))
    with torch.no_grad():
        net(torch.zeros(1, channels, side, side))
    return (sides[-1] if sides else side), len(sides) == 1


def blur(case: Case) -> Finding | None:
    """A blur of images that have no detail to spare."""
    views, side = case.recipe.augmentation, case.view_shape[1]
    if not views.blur or side >= SHARP:
        return None
    return Finding(
        "blur",
        f"views of {side} px are blurred",
        f"{100 * views.blur:g} % of them, with a standard deviation of up to {views.blur_max:g} px; SimCLR leaves blur "
        "out at 32 px (appendix B.9)",
        "--blur 0",
    )


def temperature(case: Case) -> Finding | None:
    """A temperature outside what the literature uses."""
    value = getattr(case.recipe.head, "temperature", None)
    low, high = TEMPERATURES
    if value is None or low <= value <= high:
        return None
    usual = METHODS[case.recipe.method].Settings().temperature
    effect = (
        "negatives of every similarity count alike" if value > high else "only the nearest negative of an image counts"
    )
    return Finding(
        "temperature",
        f"temperature {value:g} is {'high' if value > high else 'low'}",
        f"outside {low:g} to {high:g}: {effect}{cosines(case)}",
        f"--temperature {usual:g}",
    )


def cosines(case: Case) -> str:
    """What the features were like in the end, where it was logged."""
    rows = [row for row in case.run.log() if row.get("z_positive_cosine") is not None]
    if not rows:
        return ""
    positive, negative = (rows[-1][f"z_{kind}_cosine"] for kind in ("positive", "negative"))
    return f"; in the end two views of an image had a cosine of {positive:.2f}, of two images {negative:.2f}"


def learning_rate(case: Case) -> Finding | None:
    """A learning rate outside what works with the optimizer and the batch."""
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
        f"{rate:g}{how} lies outside {low:g} to {high:g}; the loss went {course(case)}",
        f"--lr {USUAL[settings.optimizer]:g}",
    )


def course(case: Case) -> str:
    """From where to where the loss went."""
    return f"from {logged(case)[0]:.3g} to {case.losses[-1]:.3g}"


def weak_augmentation(case: Case) -> Finding | None:
    """Two views of an image that are told to belong together by their pixels alone."""
    images = case.splits[0].images
    order = torch.randperm(len(images), generator=generator("cpu", "doctor", case.recipe.seed))[:SAMPLE]
    make_view = Views(case.recipe.augmentation, case.recipe.normalisation)
    stream = generator("cpu", "doctor views", case.recipe.seed)
    alike = agreement(*(make_view(images[order], stream).flatten(1) for _ in range(2)))
    if alike < ALIKE:
        return None
    return Finding(
        "weak_augmentation",
        "the views of an image are nearly alike: pixels alone pair them",
        f"pixels of two views agree by {alike:.2f}, above {ALIKE}; the default views by "
        f"{agreement(*default_views(images[order], case.recipe.normalisation)):.2f}",
        "--crop-min 0.2 --jitter 0.8 --grayscale 0.2",
    )


def default_views(images: torch.Tensor, normalisation: Normalisation) -> list[torch.Tensor]:
    """The default recipe's views of uint8 (B, C, H, W), drawn twice: float (B, C h w) each."""
    if images.shape[1] != 3:  # the first channel stands for red, green and blue
        images = images[:, :1].expand(-1, 3, -1, -1)
        normalisation = Normalisation(mean=normalisation.mean[:1], std=normalisation.std[:1])
    make_view, stream = Views(RECIPES["default"].augmentation, normalisation), generator("cpu", "doctor views")
    return [make_view(images, stream).flatten(1) for _ in range(2)]


def strong_augmentation(case: Case) -> Finding | None:
    """Two views of an image that training could not bring together."""
    views, which = case.recipe.augmentation, "z" if "z_agreement" in case.health else "h"
    settings = [f"{name} {getattr(views, name):g}" for name, most in STRONG.items() if getattr(views, name) > most]
    settings += [f"crop_min {views.crop_min:g}"] * (views.crop_min < 0.05)
    alike = case.health[f"{which}_agreement"]
    if not settings or alike >= APART:
        return None
    return Finding(
        "strong_augmentation",
        f"the views of an image have too little in common: {', '.join(settings)}",
        f"two views of an image agree by {alike:.2f} after training, below {APART} ({which}, where 1 is equal)",
        "--crop-min 0.2 --brightness 0.4 --contrast 0.4 --saturation 0.4 --hue 0.1 --grayscale 0.2",
    )
