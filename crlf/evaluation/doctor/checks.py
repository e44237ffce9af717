"""The table of the doctor's checks. A check takes a `Case` and returns a `Finding`, or None if all is well."""

from __future__ import annotations

from collections.abc import Callable

from crlf.evaluation.doctor import images, settings, training
from crlf.evaluation.doctor.case import Case, Finding

CHECKS: dict[str, Callable[[Case], Finding | None]] = {
    "worth": training.worth,
    "short_training": training.short_training,
    "collapse": training.collapse,
    "loss": training.loss,
    "learning_rate": settings.learning_rate,
    "temperature": settings.temperature,
    "stem": settings.stem,
    "blur": settings.blur,
    "weak_augmentation": settings.weak_augmentation,
    "strong_augmentation": settings.strong_augmentation,
    "batch_norm": training.batch_norm,
    "too_few_epochs": training.too_few_epochs,
    "duplicates": images.duplicates,
    "leakage": images.leakage,
    "shifted_labels": images.shifted_labels,
}
