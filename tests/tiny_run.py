"""A run folder as the stages leave it, made in an instant."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from crlf.data.thumbnails import sample
from crlf.runs.files import save_array, save_tensors, write_json
from crlf.runs.run import CLASSES, ENCODER, LOG, LOSS, RECIPE, THUMBNAILS, VIEWS, Run

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SOUND = {
    "spread": 0.9,
    "agreement": 0.6,
    "effective_rank": 20.0,
    "dead": 0.0,
}  # as `measure` of crlf.training.monitor names them
HOSTILE = ("<script>alert(1)</script>", "$\\frac{", 'a"b\nc & d', "日本語", "e\ud800f", "")


def fake_health(epoch: float) -> dict[str, object]:
    """What a look at the features logs, as `crlf.training.monitor.examine` gives it."""
    numbers = {"rankme": 40 + 9 * epoch, "alignment": 1 / epoch, "uniformity": -epoch, "spread": 0.3 * epoch}
    both = {f"{place}_{key}": value / k for k, place in ((1, "h"), (2, "z")) for key, value in numbers.items()}
    counts = [i * i for i in range(20)]
    histograms = {"positive_histogram": counts, "negative_histogram": counts[::-1]}
    return {**both, **histograms, "h_spectrum": [1.0, 0.5, 0.3 / epoch, 0.1, 0.01, 0.0]}


def fake_run(path: Path, names: tuple[str, ...] = CIFAR, n: int = 100, views: int = 2, side: int = 8) -> Run:
    """A run folder as the stages leave it: n test images in one tight cluster a class, 9 of 10 predicted well."""
    random = np.random.default_rng(0)
    K = len(names)
    labels = np.arange(n) % K
    centres = 6 * random.normal(size=(K, 12))
    run = Run(path)
    path.mkdir(parents=True, exist_ok=True)
    recipe = {"method": "simclr", "encoder": "cnn", "data": "cifar10", "epochs": 3, "batch_size": 32, "views": views}
    sections = {"augmentation": {"crop_min": 0.2, "flip": 0.5, "blur": 0.0}, "head": {"temperature": 0.25}}
    write_json(run.file(RECIPE), {**recipe, "seed": 7, **sections})
    rows = [{"step": i, "epoch": i / 10, "loss": 4 - math.log(i) / 3, "lr": 0.01} for i in range(2, 31, 2)]
    for row in rows:
        if row["step"] % 10 == 0:
            row.update(fake_health(row["epoch"]))
    run.file(LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_array(run.file(LOSS), np.array([3.412, 3.123, 2.918]))
    save_array(run.file("test_emb.npy"), (centres[labels] + random.normal(size=(n, 12))).astype(np.float32))
    save_array(run.file("test_lbl.npy"), labels)
    predicted = np.where(random.random(n) < 0.9, labels, random.integers(0, K, n))
    save_array(run.file("test_pred.npy"), predicted)
    write_json(run.file(CLASSES), list(names))
    save_array(run.file(VIEWS), random.integers(0, 256, (10, 1 + views, 3, side, side), dtype=np.uint8))
    confidence = random.uniform(0.5, 1, (n, 1)).astype(np.float32)
    others = (1 - confidence) / max(1, K - 1)
    save_array(run.file("test_prob.npy"), np.where(np.eye(K, dtype=bool)[predicted], confidence, others))
    write_json(run.file("test_ids.json"), [f"test/{i:05}" for i in range(n)])
    save_array(run.file(THUMBNAILS), pictures(n, side)[sample(n)])
    save_tensors(run.file(ENCODER), {"stem.weight": torch.from_numpy(random.normal(size=(12, 3, 3, 3)))})
    run.update_scores(knn_accuracy=0.876, chance=0.123, train_seconds=83.0, epochs=3)
    return run


def pictures(n: int, side: int = 8) -> np.ndarray:
    """Images of one colour each, told apart by eye and after compression: uint8 (n, side, side, 3)."""
    i = np.arange(n)
    colours = np.stack([i % 7 * 40, i // 7 % 7 * 40, i // 49 % 7 * 40], axis=1).astype(np.uint8)
    return np.broadcast_to(colours[:, None, None], (n, side, side, 3)).copy()


def numbers(h: dict[str, float] | None = None, z: dict[str, float] | None = None) -> dict[str, float]:
    """Measures of sound features, but for those that are given; of a method without a projector where z is None."""
    found = {f"h_{key}": value for key, value in (SOUND | (h or {})).items()}
    return found | ({} if z is None else {f"z_{key}": value for key, value in (SOUND | z).items()})
