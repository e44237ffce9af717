"""Each threshold of the doctor has a case on either side of it, near enough that twice or half of it would show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crlf.augmentation import ViewSettings
from crlf.data import PUBLISHED, ImageSet
from crlf.evaluation.doctor import images, settings, training
from crlf.evaluation.doctor.case import Case, Finding
from crlf.methods.simclr import SimCLRSettings
from crlf.optim import OptimSettings
from crlf.recipe import Recipe


class Seen:
    """What the checks ask of a case; what is not given is not there."""

    def __init__(self, log: list[dict[str, Any]] | None = None, **given: Any):
        self.run = SimpleNamespace(log=lambda: log or [], unlabelled=True, cross_validated=False)
        self.recipe = Recipe(data="shapes", normalisation=PUBLISHED["shapes"])
        self.__dict__ |= given


def image_set(pixels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(pixels), None, (), [str(i) for i in range(len(pixels))])


def noise(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 3, 8, 8)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def judged(found: list[Finding | None]) -> list[bool]:
    return [finding is not None for finding in found]


# The images


def test_more_than_one_copy_in_a_hundred_is_told():
    def with_copies(count: int) -> Finding | None:
        pixels = noise(200)
        pixels[100 : 100 + count] = pixels[:count]
        return images.duplicates(Seen(splits=(image_set(pixels), None)))  # type: ignore[arg-type]

    assert judged([with_copies(2), with_copies(3)]) == [False, True]


def correlated(pixels: np.ndarray, r: float) -> np.ndarray:
    """Images whose correlation with each of these is r, but for the rounding to 256 levels."""
    x = pixels.reshape(len(pixels), -1).astype(float)
    other = noise(len(pixels), seed=7).reshape(x.shape).astype(float)
    x, other = (rows - rows.mean(axis=1, keepdims=True) for rows in (x, other))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    other -= (other * x).sum(axis=1, keepdims=True) * x
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    mixed = r * x + (1 - r * r) ** 0.5 * other
    return (128 + 400 * mixed).round().clip(0, 255).astype(np.uint8).reshape(pixels.shape)


@pytest.mark.parametrize("r, count, told", [(0.96, 2, False), (0.96, 3, True), (0.94, 200, False)])
def test_test_images_that_correlate_by_more_than_95_percent_and_are_more_than_one_in_a_hundred(
    r: float, count: int, told: bool
):
    train, test = noise(200), noise(200, seed=1)
    test[:count] = correlated(train[:count], r)
    found = images.correlation(torch.from_numpy(train[:count]), torch.from_numpy(test[:count]))
    assert found.numpy() == pytest.approx(np.full(count, r), abs=0.006)
    case = Seen(splits=(image_set(train), image_set(test)), train=np.eye(200, dtype=np.float32))
    case.test = case.train  # each is nearest to its own
    assert judged([images.leakage(case)]) == [told]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "own, other, told",
    [
        (0.12, 0.6, True),  # near chance: a quarter of the way to the other's accuracy, and its error
        (0.20, 0.6, False),
        (0.0, 0.12, True),  # apart: five standard errors of 1,000 images
        (0.0, 0.06, False),
    ],
)
def test_labels_are_shifted_when_their_own_images_are_near_chance_and_others_far_from_it(
    own: float, other: float, told: bool
):
    """Features are a code of ten: of an image's own label with one probability, of the next row's with another."""
    random = np.random.default_rng(3)
    y = random.integers(10, size=4000)
    which = random.random(4000)
    code = np.where(which < own, y, np.where(which < own + other, np.roll(y, -1), random.integers(10, size=4000)))
    x = np.eye(10, dtype=np.float32)[code]
    found = images.best_shift(x, y, x, y, "train")
    assert (found is not None) == told and (found is None or found[1] == 1)


# The settings


@pytest.mark.parametrize("side, told", [(47, True), (48, False)])
def test_a_blur_is_told_below_48_pixels(side: int, told: bool):
    recipe = Recipe(data="shapes", normalisation=PUBLISHED["shapes"], augmentation=ViewSettings(blur=0.01))
    assert judged([settings.blur(Seen(recipe=recipe, view_shape=(3, side)))]) == [told]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "places, patches, told", [(3, True, True), (4, True, False), (1, False, True), (2, False, False)]
)
def test_four_patches_a_side_or_maps_of_two(monkeypatch: pytest.MonkeyPatch, places: int, patches: bool, told: bool):
    monkeypatch.setattr(settings, "places_left", lambda *arguments: (places, patches))
    found = settings.stem(Seen(view_shape=(3, 32)))  # type: ignore[arg-type]
    assert judged([found]) == [told]
    assert not found or f"below {4 if patches else 2} × " in found.evidence


@pytest.mark.parametrize("value, told", [(0.039, True), (0.041, False), (0.69, False), (0.71, True)])
def test_temperatures_from_4_hundredths_to_7_tenths_are_usual(value: float, told: bool):
    recipe = Recipe(data="shapes", normalisation=PUBLISHED["shapes"], head=SimCLRSettings(temperature=value))
    assert judged([settings.temperature(Seen(recipe=recipe))]) == [told]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "optimizer, low, high",
    [
        ("muon", 0.002, 0.2),
        ("adam", 3e-5, 1e-2),
        ("adamw", 3e-5, 1e-2),
        ("sgd", 5e-3, 3.0),
        ("lars", 0.02, 100.0),
    ],
)
def test_the_range_of_an_optimizers_rates(optimizer: str, low: float, high: float):
    def told(lr: float) -> bool:
        recipe = Recipe(
            data="shapes", normalisation=PUBLISHED["shapes"], optim=OptimSettings(optimizer=optimizer, lr=lr, lr_per=0)
        )
        return bool(settings.learning_rate(Seen([{"loss": 3.0}], recipe=recipe, losses=np.ones(1))))  # type: ignore[arg-type]

    assert [told(lr) for lr in (0.95 * low, 1.05 * low, 0.95 * high, 1.05 * high)] == [True, False, False, True]


@pytest.mark.parametrize("alike, told", [(0.69, False), (0.71, True)])
def test_pixels_of_two_views_that_agree_by_more_than_7_tenths(
    monkeypatch: pytest.MonkeyPatch, alike: float, told: bool
):
    monkeypatch.setattr(settings, "agreement", lambda a, b: alike)
    found = settings.weak_augmentation(Seen(splits=(image_set(noise(9)), None)))  # type: ignore[arg-type]
    assert judged([found]) == [told]


@pytest.mark.parametrize(
    "views, agreement, told",
    [
        ({"brightness": 0.81}, 0.39, True),
        ({"brightness": 0.81}, 0.41, False),
        ({"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.25, "grayscale": 0.5}, 0.39, False),
        ({"contrast": 0.81}, 0.39, True),
        ({"saturation": 0.81}, 0.39, True),
        ({"hue": 0.26}, 0.39, True),
        ({"grayscale": 0.51}, 0.39, True),
        ({"crop_min": 0.049}, 0.39, True),
        ({"crop_min": 0.051}, 0.39, False),
    ],
)
def test_strong_views_whose_features_agree_by_less_than_4_tenths(views: dict, agreement: float, told: bool):
    recipe = Recipe(data="shapes", normalisation=PUBLISHED["shapes"], augmentation=ViewSettings(**views))
    found = settings.strong_augmentation(Seen(recipe=recipe, health={"h_agreement": agreement}))  # type: ignore[arg-type]
    assert judged([found]) == [told]


# What training left


@pytest.mark.parametrize("step, told", [(49, False), (50, True)])
def test_a_collapse_is_one_from_step_50_on(step: int, told: bool):
    health = {"step": step, "h_spread": 0.01, "h_agreement": 0.1, "h_effective_rank": 9.0, "h_dead": 0.0}
    assert judged([training.collapse(Seen(health=health))]) == [told]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lowest, last, what",
    [
        (4.96, 4.96, "the loss barely moved"),  # by less than a hundredth of where it began, 5
        (4.94, 4.94, None),
        (4.0, 4.09, None),  # it rose by less than a tenth of its fall
        (4.0, 4.11, "the loss rose again"),
    ],
)
def test_a_loss_falls_by_a_hundredth_and_keeps_nine_tenths_of_it(lowest: float, last: float, what: str | None):
    found = training.loss(Seen([{"loss": 5.0}], losses=np.array([4.97, lowest, last])))  # type: ignore[arg-type]
    assert (found and found.what) == what


def power_law(epochs: int, c: float) -> np.ndarray:
    return 2 + np.arange(1, epochs + 1, dtype=float) ** -c


@pytest.mark.parametrize(
    "losses, told",
    [
        (power_law(10, 0.5), True),  # ten epochs more bring 14 % of the fall so far
        (power_law(10, 1.0), False),  # 6 %
        (power_law(4, 0.3), True),
        (power_law(3, 0.3), False),  # of three epochs nothing is said
    ],
)
def test_twice_the_epochs_should_bring_a_tenth_of_the_fall_and_four_can_be_judged(losses: np.ndarray, told: bool):
    assert judged([training.too_few_epochs(Seen(losses=losses))]) == [told]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "off, steps, advice",
    [(0.45, 10, None), (0.55, 99, "more --epochs"), (0.55, 100, "run crlf pretrain again")],
)
def test_variances_that_are_off_by_more_than_half_an_e(
    monkeypatch: pytest.MonkeyPatch, off: float, steps: int, advice: str | None
):
    monkeypatch.setattr(training, "load_encoder", lambda *arguments: SimpleNamespace(encoder=None))
    monkeypatch.setattr(
        training, "statistics", lambda encoder, views: [("a", 0.1, 1), ("b", off, steps), ("c", 0.2, 5)]
    )
    found = training.batch_norm(Seen(splits=(image_set(noise(9)), None)))  # type: ignore[arg-type]
    assert (found is None) == (advice is None)
    assert found is None or (found.advice.startswith(str(advice)) and f"{np.exp(off):.1f}" in found.evidence)


def test_a_case_has_what_these_checks_were_given():
    """Else a check could be right here and wrong with a run."""
    assert {"splits", "train", "test", "health", "losses", "recipe", "view_shape"} <= set(dir(Case))


def test_two_hundred_steps_and_one_epoch_are_enough_or_a_gain():
    def after(steps: int, epochs: float, **scores: Any) -> Finding | None:
        case = Seen(log=[{"step": steps, "epoch": epochs}])
        case.run.scores = scores
        return training.short_training(case)  # type: ignore[arg-type]

    assert judged([after(200, 1.0), after(199, 1.0), after(200, 0.99), after(9000, 0.4)]) == [False, True, True, True]
    finding = after(60, 2.0)
    assert finding is not None and "4 times as many steps" in finding.advice
    gain = {"crops_over_untrained": {"difference": 0.1, "interval": [0.05, 0.15]}}
    accuracies = {"crops_accuracy": 0.5, "untrained_crops_accuracy": 0.4}
    assert after(60, 2.0, **gain, **accuracies) is None
