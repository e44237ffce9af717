"""Checks of the data: copies, test images with near-copies among the training images, shifted labels."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crlf.errors import InputError
from crlf.evaluation.doctor.case import Case, Finding
from crlf.metrics.cosine import top_k, unit
from crlf.text import percent

COPIES = 0.01  # share of the training images that may be copies
CORRELATION = 0.95  # of the pixels of two images; above it they are near-copies
LEAKED = 0.01  # share of the test images that may have one; CIFAR-10 has 0.84 to 0.96 %
SHIFTS = (-3, -2, -1, 1, 2, 3)  # rows
FITTED, HELD = 5000, 2000  # images to fit and to test the check of the labels
RIDGE = 1e-2  # penalty, relative to the variance


def duplicates(case: Case) -> Finding | None:
    """Copies among the training images."""
    train = case.splits[0]
    first: dict[bytes, int] = {}
    copies = []
    for row, image in enumerate(train.images):
        digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
        if digest in first:
            copies.append((first[digest], row))
        first.setdefault(digest, row)
    if len(copies) <= COPIES * len(train):
        return None
    a, b = copies[0]
    return Finding(
        "duplicates",
        "some training images are copies of others",
        f"{len(copies):,} of {len(train):,} ({percent(len(copies) / len(train))}) are copies of an earlier one, such "
        f"as {train.ids[b]!r} of {train.ids[a]!r}: as negatives they push an image away from itself",
        "--drop-copies, or --data without the copies (for a folder, duplicates.csv in its cache lists them)",
    )


def leakage(case: Case) -> Finding | None:
    """Test images that are near-copies of training images."""
    if case.run.cross_validated:
        return None  # every image is tested by a model that was not fitted on it
    train, test = case.splits
    if not len(test) or len(case.train) != len(train) or len(case.test) != len(test):
        raise InputError("there are no test images, or their number differs from that of the embeddings")
    places = nearest_rows(case.train, case.test)
    alike = correlation(train.images[places], test.decoded)
    leaked = (alike > CORRELATION).numpy()
    if leaked.mean() <= LEAKED:
        return None
    worst = int(alike.argmax())
    return Finding(
        "leakage",
        "some test images are (nearly) the same as training images",
        f"{int(leaked.sum()):,} of {len(test):,} ({percent(leaked.mean())}) correlate by more than {CORRELATION} with "
        f"a training image, such as {test.ids[worst]!r} with {train.ids[int(places[worst])]!r}{scored(case, leaked)}",
        "remove these images from one of the two splits, then run pretrain and probe again",
    )


def nearest_rows(train: np.ndarray, test: np.ndarray) -> Tensor:
    """The training image with the largest cosine for each test image: float32 (N, D), (M, D) -> int64 (M,)."""
    return top_k(unit(test), [unit(train)], 1).rows[:, 0]


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of the pixels of pairs of images, the larger of plain and mirrored: uint8 (M, C, H, W) twice ->
    float32 (M,)."""
    found = []
    for x, y in zip(a.split(1000), b.split(1000), strict=True):
        rows = [image.float().flatten(1) for image in (x, x.flip(3), y)]
        one, mirrored, other = (F.normalize(row - row.mean(dim=1, keepdim=True), dim=1) for row in rows)
        found.append(torch.maximum((one * other).sum(dim=1), (mirrored * other).sum(dim=1)))
    return torch.cat(found)


def scored(case: Case, leaked: np.ndarray) -> str:
    """The accuracy of the linear probe on these images and on the rest, if known."""
    if case.run.unlabelled or not case.run.file("test_pred.npy").exists():
        return ""
    right = case.run.array("test_pred.npy") == case.labels("test")
    if len(right) != len(leaked) or leaked.all():
        return ""
    these, rest = percent(right[leaked].mean()), percent(right[~leaked].mean())
    return f"; the linear probe is right on {these} of these and on {rest} of the rest"


# Labels


def shifted_labels(case: Case) -> Finding | None:
    """Labels that are shifted against the images: predicted near chance, but well after a shift by some rows."""
    train, labels = case.train, case.labels("train")
    if labels.shape != train.shape[:1]:
        raise InputError(f"train_lbl.npy must be ({len(train)},) as the embeddings, not {labels.shape}")
    shift = best_shift(train, labels, train, labels, "train")
    if shift is None and not case.run.cross_validated:
        test, truth = case.test, case.labels("test")
        shift = best_shift(train, labels, test, truth, "test") if truth.shape == test.shape[:1] else None
    if shift is None:
        return None
    split, rows, own, other = shift
    apart = f"{abs(rows)} row{'s' * (abs(rows) > 1)}"
    return Finding(
        "shifted_labels",
        f"the labels of the {split} images look shifted by {apart}",
        f"a linear fit is right on {percent(own)} of the {split} images with their own labels, and on {percent(other)} "
        f"with the labels {apart} {'below' if rows > 0 else 'above'}",
        "put the labels in the order of the images: label i belongs to image i",
    )


def best_shift(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, split: str
) -> tuple[str, int, float, float] | None:
    """The shift at which the labels fit clearly better: (split, shift, accuracy without, accuracy with), or None.

    For the training split, a part is held out and the labels of both parts are shifted; for the test split, only the
    test labels are shifted.
    """
    random = np.random.default_rng(0)
    order = random.permutation(len(x))
    fitted, held = order[:FITTED], order[FITTED : FITTED + HELD]
    if split == "test":
        held = random.permutation(len(x_test))[:HELD]
    elif len(x) < FITTED + HELD:
        fitted, held = np.array_split(order, [3 * len(order) // 4])
    within = split == "train"
    found = {}
    for shift in (0, *SHIFTS):
        target = np.roll(y, -shift) if within else y
        truth = np.roll(y_test, -shift)
        predicted = ridge(x[fitted], target[fitted], x_test[held])
        found[shift] = float((predicted == truth[held]).mean())
    best = max(SHIFTS, key=lambda shift: found[shift])
    noise = np.sqrt(0.25 / max(1, len(held)))
    chance = np.unique(y_test, return_counts=True)[1].max() / len(y_test)
    near = found[0] < chance + 0.25 * max(0.0, found[best] - chance) + noise
    if not near or found[best] - found[0] < 5 * noise:
        return None
    return split, best, found[0], found[best]


def ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Predict classes by ridge regression on one-hot labels: float32 (N, D), int (N,), float32 (M, D) -> int (M,).

    It solves the primal or the dual problem, whichever is smaller, in under a second.
    """
    classes, places = np.unique(y, return_inverse=True)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    a, b = (torch.from_numpy((part - mean) / scale).double() for part in (x, x_test))
    target = F.one_hot(torch.from_numpy(places.astype(np.int64)), len(classes)).double()
    target = target - target.mean(dim=0)
    if len(a) > a.shape[1]:
        weights = torch.linalg.solve(a.T @ a + RIDGE * len(a) * torch.eye(a.shape[1]), a.T @ target)
        outputs = b @ weights
    else:
        outputs = b @ a.T @ torch.linalg.solve(a @ a.T + RIDGE * len(a) * torch.eye(len(a)), target)
    return classes[(outputs + torch.from_numpy(np.bincount(places) / len(y))).argmax(dim=1).numpy()]
