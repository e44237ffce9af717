"""Formats every number of scores.json: its name, its unit, and its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crlf.text import duration, percent
from crlf.visualization.report.html import Section, plain, section

NAMES = {
    "linear_accuracy": "Linear probe",
    "augmented_accuracy": "Linear probe, fitted on crops as well",
    "knn_accuracy": "Nearest neighbours (kNN)",
    "knn": "kNN by the number of neighbours k",
    "plain_linear_accuracy": "Linear probe, read plainly",
    "plain_knn_accuracy": "kNN, read plainly",
    "untrained_linear_accuracy": "Linear probe, untrained encoder",
    "untrained_knn_accuracy": "kNN, untrained encoder",
    "pixels_linear_accuracy": "Linear probe, raw pixels",
    "pixels_knn_accuracy": "kNN, raw pixels",
    "crops_accuracy": "Finding an image by a crop of it",
    "untrained_crops_accuracy": "Finding an image by a crop of it, untrained encoder",
    "supervised_accuracy": "The same network, trained on the labels",
    "fine_tuning_accuracy": "Linear probe and encoder, fine-tuned on the labels",
    "corrupted_accuracy": "Linear probe, corrupted images",
    "robustness": "Linear probe by corruption, at strengths 1 to 5",
    "few_label": "Linear probe, fitted on few labels",
    "cluster_accuracy": "k-means clusters matched to classes",
    "cluster_nmi": "k-means clusters: normalised mutual information (1 is best)",
    "cluster_ari": "k-means clusters: adjusted Rand index (1 is best)",
    "retrieval_map": "Retrieval: mean average precision",
    "calibration_error": "Calibration error of the linear probe",
    "confidence": "Mean confidence of the linear probe",
    "chance": "Chance: always the most frequent class",
    "linear_over_untrained": "Linear probe: gain over the untrained encoder",
    "knn_over_untrained": "kNN: gain over the untrained encoder",
    "crops_over_untrained": "Finding an image by a crop of it: gain over the untrained encoder",
    "linear_over_pixels": "Linear probe: gain over raw pixels",
    "knn_over_pixels": "kNN: gain over raw pixels",
    "method": "Method",
    "encoder": "Encoder",
    "data": "Data",
    "image_shape": "Image (channels × height × width)",
    "seed": "Seed",
    "supervised": "Learned from labels",
    "cross_validated": "Cross-validated",
    "epochs": "Epochs",
    "views_seen": "Views seen",
    "loss": "Loss, last epoch",
    "images_per_second": "Images a second",
    "pflop": "Arithmetic",
    "device": "Device",
    "processes": "Processes",
    "precision": "Precision",
    "torch": "PyTorch",
    "started_from": "Started from",
    "teacher": "Teacher",
    "train_seconds": "Training time",
    "first_step_seconds": "First step",
    "embed_seconds": "Embedding time",
    "probe_seconds": "Probing time",
    "draw_seconds": "Drawing time",
}
PROTOCOLS = {
    "calibration_error": "calibration",
    "confidence": "calibration",
    "corrupted": "robustness",
    "retrieval_map": "retrieval",
    **dict.fromkeys(("cluster", "cluster_nmi", "cluster_ari"), "clustering"),
    **dict.fromkeys(("untrained_linear", "untrained_knn"), "untrained"),
    **dict.fromkeys(("pixels_linear", "pixels_knn"), "pixels"),
    **dict.fromkeys(("plain_linear", "plain_knn"), "plain"),
}
"""The name of the protocol of a number, if it is not the name of the number."""
SHARES = ("chance", "confidence", "calibration_error", "retrieval_map")


def numbers(scores: dict[str, Any]) -> Section | None:
    """Every number of scores.json: what the embeddings are worth, what training added, the training itself."""
    found: dict[str, list[tuple[str, str, str]]] = {"Quality": [], "Gains": [], "Training": []}
    protocol = scores.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    for key, value in scores.items():
        if key != "protocol" and not is_interval_of(key, scores):
            how = protocol.get(name := key.removesuffix("_accuracy"), protocol.get(PROTOCOLS.get(name, ""), ""))
            found[place(key)].append((called(key), text(key, value, scores), plain(how)))
    if readout := protocol.get("embedding"):
        found["Quality"].insert(0, ("Embedding", plain(readout), ""))
    groups = {title: told_once(rows) for title, rows in found.items() if rows}
    return section("Numbers", "numbers.html", groups=groups) if groups else None


def told_once(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Rows without a remark that stands at the row before."""
    before = ["", *(remark for _, _, remark in rows)]
    return [(name, words, "" if how == last else how) for (name, words, how), last in zip(rows, before, strict=False)]


def called(key: str) -> str:
    """The title of a number."""
    return NAMES.get(key, key.replace("_", " "))


def place(key: str) -> str:
    """The group of a number."""
    if "_over_" in key:
        return "Gains"
    quality = key in (*SHARES, "knn", "few_label", "robustness", "cluster_nmi", "cluster_ari")
    return "Quality" if quality or key.endswith(("_accuracy", "_interval")) else "Training"


def is_interval_of(key: str, scores: dict[str, Any]) -> bool:
    """Whether a number is shown together with its accuracy."""
    return key.endswith("_interval") and key.replace("_interval", "_accuracy") in scores and is_interval(scores[key])


def text(key: str, value: Any, scores: dict[str, Any]) -> str:
    """A number with its unit; what is not as expected stays as it is."""
    if isinstance(value, dict):
        return in_words(key, value)
    if key.endswith("_interval") and is_interval(value):
        return between(value)
    if is_number(value):
        if key.endswith("_accuracy") or key in SHARES:
            limits = scores.get(key.replace("_accuracy", "_interval"))
            told = is_interval(limits) and key.endswith("_accuracy")
            return percent(value) + (f" (95 % interval: {between(limits)})" if told else "")
        if key.endswith("_seconds"):
            return duration(value)
    if key == "image_shape" and isinstance(value, list):
        return " × ".join(map(rounded, value))
    return rounded(value) + (" PFLOP" if key == "pflop" and is_number(value) else "")


def in_words(key: str, value: dict[str, Any]) -> str:
    """A table within scores.json."""
    if set(value) == {"difference", "interval"} and is_number(value["difference"]) and is_interval(value["interval"]):
        return f"{points(value['difference'])} points (95 % interval: {ends(value['interval'], points)})"
    if key == "few_label":
        return "\n".join(f"{name}: {few(row)}" for name, row in value.items())
    if key in ("knn", "robustness"):
        return "\n".join(f"{name}: {shares(row)}" for name, row in value.items())
    return "; ".join(f"{name}: {rounded(item)}" for name, item in value.items())


def few(row: Any) -> str:
    """Such as: 63.2 ± 1.1 % (100 labels)."""
    if not isinstance(row, dict) or not all(is_number(row.get(name)) for name in ("labels", "mean", "sd")):
        return plain(row)
    return f"{100 * row['mean']:.1f} ± {percent(row['sd'])} ({row['labels']:,} labels)"


def shares(row: Any) -> str:
    """Such as 60.1, 55.0 %, or by k: 70.5 % (k = 1), 72.8 % (k = 10)."""
    if isinstance(row, dict) and all(map(is_number, row.values())):
        return ", ".join(f"{percent(share)} (k = {k})" for k, share in row.items())
    if isinstance(row, list) and all(map(is_number, row)):
        return ", ".join(f"{100 * share:.1f}" for share in row) + " %"
    return plain(row)


def rounded(value: Any) -> str:
    """A value of a JSON file, a fraction to four digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(rounded, value))
    return plain(value)


def points(share: float) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def between(limits: Any) -> str:
    return ends(limits, lambda share: f"{100 * share:.1f}") + " %"


def ends(limits: Any, write: Any) -> str:
    return f"{write(limits[0])} to {write(limits[1])}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def number(scores: Mapping[str, Any], key: str) -> float | None:
    """The number with this name, or None."""
    value = scores.get(key)
    return value if is_number(value) else None
