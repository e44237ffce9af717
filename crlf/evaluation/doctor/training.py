"""Checks of the training: collapse, a loss that went wrong or was still falling, batch-norm statistics."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.optimize import OptimizeWarning, curve_fit
from torch import Tensor, nn

from crlf.augmentation import Views
from crlf.embedding.embed import load_encoder
from crlf.errors import InputError
from crlf.evaluation.doctor.case import Case, Finding
from crlf.methods import METHODS
from crlf.metrics.geometry import SETTLED, diagnose
from crlf.runs.payoff import ADVICE, payoff
from crlf.runtime.seeding import generator

FEW = 200  # steps; with fewer, an encoder is often no better than untrained
ROSE = 0.1  # how far the last loss may be above the lowest, as a share of the fall
MOVED = 0.01  # smallest fall of the loss, as a share of the first loss
POINTS = 4  # epochs needed to extrapolate a curve
GAIN = 0.1  # fall expected from twice the epochs, as a share of the fall so far
OFF = 0.5  # mean |log| of the ratio of variances: 0.1 after 39 steps, 1 after 8
ENOUGH = 100  # steps after which the first statistics no longer count
SAMPLE = 512  # images for the statistics


def worth(case: Case) -> Finding | None:
    """Embeddings that are no better than those of the untrained encoder."""
    found = payoff(case.run.scores)
    if found is None:
        raise InputError("the gain from training was not measured: `crlf probe` measures it, if it finds the images")
    return None if found.paid else Finding("worth", found.what.lower(), found.numbers, ADVICE)


def short_training(case: Case) -> Finding | None:
    """Too few steps, unless training is known to have paid anyway."""
    rows = [row for row in case.run.log() if isinstance(row.get("step"), int) and isinstance(row.get("epoch"), float)]
    if not rows:
        raise InputError("the log has no steps: `crlf pretrain` writes them")
    steps, epochs = rows[-1]["step"], rows[-1]["epoch"]
    found = payoff(case.run.scores)
    if (epochs >= 1 and steps >= FEW) or (found and found.paid):
        return None
    times = math.ceil(max(FEW / steps, 1 / epochs))
    return Finding(
        "short_training",
        f"training was short: {steps:,} steps",
        f"{steps:,} steps, {epochs:.3g} epochs of {round(steps / epochs):,} steps; an encoder usually learns little in "
        f"fewer than {FEW} steps or less than one epoch",
        f"--minutes or --epochs for at least {times} times as many steps; smaller images (--image-size) or a smaller "
        "--batch-size allow more steps in the same time",
    )


def collapse(case: Case) -> Finding | None:
    """Features that do not distinguish images, by `crlf.metrics.geometry`."""
    found = diagnose(case.health) if case.health["step"] >= SETTLED else None
    if found is None:
        return None
    where = f"at step {case.health['step']:,} of training"
    return Finding("collapse", f"collapse: {found.what}", f"{found.evidence()}, {where}", found.advice)


def loss(case: Case) -> Finding | None:
    """A loss that did not fall, or rose again: compares the first logged loss with the means of the epochs."""
    first, means = logged(case)[0], case.losses
    lowest, last = float(means.min()), float(means[-1])
    if not METHODS[case.recipe.method].loss_falls:
        return None
    optimizer, lr = case.recipe.optim.optimizer, case.recipe.optim.lr
    if first - lowest < MOVED * abs(first):
        what, flag = "the loss barely moved", f"a higher --lr than {lr:g}, or --recipe default"
    elif last - lowest > ROSE * (first - lowest):
        what, flag = "the loss rose again", f"--lr {lr / 4:g}"
    else:
        return None
    return Finding(
        "loss",
        what,
        f"from {first:.4g} to {last:.4g} (lowest {lowest:.4g}) with {optimizer}, lr {lr:g}",
        flag,
    )


def logged(case: Case) -> list[float]:
    """The logged losses, each a mean over the steps since the previous one.

    Raises:
        InputError: the log has none.
    """
    losses = [row["loss"] for row in case.run.log() if isinstance(row.get("loss"), float)]
    if not losses:
        raise InputError("the log has no loss: `crlf pretrain` writes it")
    return losses


def too_few_epochs(case: Case) -> Finding | None:
    """A loss that is still falling: twice the epochs would bring a good part of the fall so far."""
    losses = case.losses
    if not METHODS[case.recipe.method].loss_falls or len(losses) < POINTS or losses[0] <= losses[-1]:
        return None
    longer = extrapolate(losses, 2 * len(losses))
    gain = (losses[-1] - longer) / (losses[0] - losses[-1])
    if gain < GAIN:
        return None
    return Finding(
        "too_few_epochs",
        f"{len(losses)} epochs are too few: the loss was still falling",
        f"{losses[0]:.3g} in the first epoch, {losses[-1]:.3g} in the last; a power law fitted to the curve predicts "
        f"{longer:.3g} after {2 * len(losses)}, another {100 * gain:.0f} % of the fall so far",
        f"--epochs {2 * len(losses)} or more",
    )


def extrapolate(losses: np.ndarray, epoch: int) -> float:
    """The loss after `epoch` epochs by a power law a + b e^-c fitted to the mean losses, float (epochs,).

    Hestness et al. 2017, Deep learning scaling is predictable, empirically, equation 1. The last loss if the fit fails.
    """
    epochs = np.arange(1, len(losses) + 1, dtype=np.float64)
    low = min(0.0, losses.min() - 2 * np.ptp(losses))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            (_, b, c), _ = curve_fit(
                lambda e, a, b, c: a + b * e**-c,
                epochs,
                losses,
                p0=(losses[-1], losses[0] - losses[-1], 1.0),
                bounds=([low, 0, 0.05], [losses.max(), 10 * np.ptp(losses) + 1e-9, 5]),
            )
    except RuntimeError:
        return float(losses[-1])
    return float(min(losses[-1], losses[-1] + b * (epoch**-c - len(losses) ** -c)))


def batch_norm(case: Case) -> Finding | None:
    """Batch-norm statistics that do not match the training views."""
    images = case.splits[0].images
    order = torch.randperm(len(images), generator=generator("cpu", "doctor", case.recipe.seed))[:SAMPLE]
    encoder = load_encoder(case.run, case.recipe, images.shape[1:]).encoder
    make_view = Views(case.recipe.augmentation, case.recipe.normalisation)
    views = make_view(images[order], generator("cpu", "doctor views", case.recipe.seed))
    found = statistics(encoder, views)
    if not found:
        return None
    name, off, steps = max(found, key=lambda row: row[1])
    if off < OFF:
        return None
    return Finding(
        "batch_norm",
        "the batch-norm statistics do not match the views",
        f"the variances in {name} are off by a factor of {np.exp(off):.1f} on average over views of {len(order)} "
        f"training images; they come from {steps:,} steps, each of which replaces a tenth",
        "more --epochs or a smaller --batch-size, for more steps" if steps < ENOUGH else "run crlf pretrain again",
    )


@torch.no_grad()
def statistics(encoder: nn.Module, x: Tensor) -> list[tuple[str, float, int]]:
    """For each batch norm: its name, the mean |log| of the ratio of its variances to those of `x`, and its steps."""
    found: list[tuple[str, float, int]] = []

    def watch(name: str, norm: nn.BatchNorm2d) -> None:
        def look(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            assert norm.running_var is not None and norm.num_batches_tracked is not None
            own = inputs[0].var(dim=(0, 2, 3)) + norm.eps
            off = (own / (norm.running_var + norm.eps)).log().abs().mean().item()
            found.append((name, off if np.isfinite(off) else np.inf, int(norm.num_batches_tracked)))

        norm.register_forward_hook(look)

    for name, module in encoder.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            watch(name, module)
    encoder.eval()(x)
    return found
