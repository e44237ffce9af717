"""Fine-tuning: trains a classifier from a run's encoder and labelled images, and scores it on other images.

`linear` fits a linear layer on the embeddings of the frozen encoder. `full` starts from this layer and trains all
weights, so that the gradients of a random layer do not distort the features (Kumar, Raghunathan, Jones, Ma and Liang
2022, Fine-tuning can distort pretrained features, LP-FT). docs/fine-tune.md compares the two.

A network that has seen a few images hundreds of times is overconfident. `full` therefore first trains on a part of the
labels, and divides the logits by the temperature that fits the rest best.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from crlf import encoders
from crlf.augmentation import Views, ViewSettings
from crlf.data.loader import batch_rows, batches
from crlf.embedding.embed import embed_images, image_shape
from crlf.encoders.onnx_file import ONNX
from crlf.errors import InputError
from crlf.evaluation import classifier, labelled
from crlf.evaluation.calibration import calibration_error, temperature
from crlf.evaluation.classifier import Classifier
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.labelled import Labelled, chance
from crlf.evaluation.logistic_regression import FOLDS, Linear, fit_chosen, folds_of_few
from crlf.metrics.intervals import interval
from crlf.optim import OPTIMIZERS, OptimSettings, schedule, set_rates
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, Run
from crlf.runtime.devices import autocast, describe, pick_device
from crlf.runtime.seeding import generator
from crlf.text import percent

LEAST_STEPS = 450  # of full fine-tuning, for any number of images
PASSES = 30  # if they make more steps
PEAK = 3e-3  # learning rate
BATCH = 128  # images in a step
DECAY = 0.05  # weight decay of AdamW
SMOOTHING = 0.1  # of the labels (Szegedy et al. 2016, section 7)
TOLD = 50  # images needed to fit a temperature


def finetune(
    run: Run | str | Path,
    data: str | Path,
    *,
    test: str | Path | None = None,
    mode: Literal["linear", "full"] = "linear",
    labels_per_class: int = 0,
    fraction: float = 1.0,
    epochs: int = 0,
    lr: float = PEAK,
    batch_size: int = BATCH,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Train a classifier from a run's encoder and labelled images.

    Args:
        run: the run folder.
        data: labelled images: a folder with one folder per class, a table with a label column, or a named data set.
            They are resized to the size of the run's images.
        test: images of the same classes to score the classifier on. By default the test images of DATA, or a tenth of
            DATA, which is held out.
        mode: what to train: linear trains a linear layer on the frozen encoder; full then trains all weights.
        labels_per_class: train on this many random images of each class; 0 for all.
        fraction: train on this share of each class.
        epochs: passes over the images in full fine-tuning; 0 for 30, or more if these make fewer than 450 steps.
        lr: peak learning rate of full fine-tuning.
        batch_size: images per step of full fine-tuning.
        seed: seed of the choice of images, their order and their views.
        out: the folder of the classifier; by default the folder classifier in the run folder.
        overwrite: replace an existing classifier.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the first available of cuda, mps and cpu.

    Returns:
        The folder. It holds classifier.pth (the state dict), classes.json, scores.json, and classifier.json, which
        records how it was made and what `crlf classify` needs.

    Raises:
        InputError: a wrong setting, an untrained run, or no labelled images that fit it. Nothing was written.
    """
    require(mode in ("linear", "full"), "mode", "linear or full", repr(mode))
    require(labels_per_class >= 0, "labels_per_class", "0 or more", labels_per_class)
    require(0 < fraction <= 1, "fraction", "above 0 and at most 1", fraction)
    require(0 <= epochs <= 100_000, "epochs", "in 0..100000", epochs)
    require(0 < lr < math.inf, "lr", "above 0 and finite", lr)
    require(1 <= batch_size <= 65_536, "batch_size", "in 1..65536", batch_size)
    require(0 <= seed < 2**63, "seed", f"in 0..{2**63 - 1}", seed)
    data, test = str(data), None if test is None else str(test)
    run, place = Run.open(run), pick_device(device)
    folder = Path(out) if out is not None else run.file(classifier.FOLDER)
    classifier.require_free(folder, overwrite)
    recipe, shape = run.recipe, image_shape(run)
    if mode == "full" and recipe.encoder.startswith(ONNX):
        raise InputError(f"mode must be linear for the ONNX file of {str(run.path)!r}, which cannot be trained")
    weights = run.tensors(ENCODER)
    images = labelled.read(data, test, shape, labelled.settings_of(recipe, data), data_dir)
    rows = labelled.some(images.train_labels, images.classes, labels_per_class, fraction, seed)
    images = of_present(images, rows)

    start = time.perf_counter()
    model = classifier.build(recipe, shape, len(images.classes)).to(place)
    model.encoder.load_state_dict(weights)
    protocol = fit_head(model, images, rows, recipe)
    scores = score(model, images, recipe)
    if mode == "full":
        scores = {"linear_accuracy": scores["accuracy"]}
        degrees, told = cooling(model, weights, images, rows, recipe, epochs, lr, batch_size, seed)
        protocol += "; " + tune(model, images, rows, recipe, epochs, lr, batch_size, seed) + told
        model.cool(degrees)
        scores |= score(model, images, recipe) | {"temperature": degrees}
    scores |= {
        "chance": chance(images.train_labels[rows], images.test_labels),
        "mode": mode,
        "train_images": len(rows),
        "test_images": len(images.test_labels),
        "seconds": time.perf_counter() - start,
        "device": describe(place),
        "seed": seed,
        "protocol": f"{protocol}; scored on {images.how}",
    }
    how = {"data": data, "test": test, "mode": mode, "labels_per_class": labels_per_class, "fraction": fraction}
    how |= {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    made_from = {"recipe": run.settings, "image_shape": list(shape), "finetune": how}
    classifier.save(folder, model, images.classes, made_from, scores)
    print(said(scores, folder))
    return folder


def require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {rule}, not {value}")


def of_present(images: Labelled, rows: np.ndarray) -> Labelled:
    """Keep only the classes that have training images; test images of other classes get label -1."""
    present = np.unique(images.train_labels[rows])
    if len(present) < 2:
        raise InputError(f"there must be at least two classes, not {len(present)}")
    places = np.full(len(images.classes), -1, dtype=np.int64)
    places[present] = np.arange(len(present))
    classes = tuple(images.classes[label] for label in present)
    return images._replace(
        train_labels=places[images.train_labels], test_labels=places[images.test_labels], classes=classes
    )


def fit_head(model: Classifier, images: Labelled, rows: np.ndarray, recipe: Recipe) -> str:
    """Fit the linear layer on the embeddings of the frozen encoder; returns the protocol."""
    some = images.train if len(rows) == len(images.train) else images.train[torch.from_numpy(rows)]
    frozen = encoders.Frozen(model.encoder, model.mirror)
    x, y = embed_images(frozen, some, recipe.normalisation), images.train_labels[rows]
    model.requires_grad_(True)
    probe, how = fit_chosen(x, y, tolerance=1e-8)
    model.start_from(probe)
    return f"logistic regression on frozen embeddings of {len(rows):,} labelled images, {how}"


def cooling(
    model: Classifier,
    weights: dict[str, Tensor],
    images: Labelled,
    rows: np.ndarray,
    recipe: Recipe,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
) -> tuple[float, str]:
    """The temperature of the logits after full fine-tuning, and its protocol.

    Other classifiers are trained on four fifths of the labels and predict the rest: one if the rest has `TOLD` images,
    else up to five, so that each image is predicted once. If every class has a single image, the temperature is 1.

    Args:
        weights: the weights of the run's encoder.
    """
    folds = folds_of_few(images.train_labels[rows])
    found, truth = list[np.ndarray](), list[np.ndarray]()
    for number in range(FOLDS):
        held, kept = rows[folds == number], rows[folds != number]
        if not len(held) or len(np.unique(images.train_labels[kept])) < len(images.classes):
            continue
        other = classifier.build(recipe, tuple(images.train.shape[1:]), len(images.classes)).to(
            model.head.weight.device
        )
        other.encoder.load_state_dict(weights)
        fit_head(other, images, kept, recipe)
        tune(other, images, kept, recipe, epochs, lr, batch, seed, "calibrating")
        found.append(classifier.probabilities(other, images.train[torch.from_numpy(held)], recipe.normalisation))
        truth.append(images.train_labels[held])
        if sum(map(len, truth)) >= TOLD:
            break
    if not found:
        return 1.0, ", not calibrated: there is one image of each class"
    degrees = temperature(np.concatenate(found), np.concatenate(truth))
    count = sum(map(len, truth))
    return degrees, f", logits divided by {degrees:.2f}, which fits {count:,} held-out labels best"


def tune(
    model: Classifier,
    images: Labelled,
    rows: np.ndarray,
    recipe: Recipe,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    what: str = "fine-tuning",
) -> str:
    """Train all weights with AdamW on the cross-entropy of one view per image; returns the protocol.

    Args:
        what: the name in the progress bar.

    Raises:
        InputError: a weight is not finite after training.
    """
    size = min(batch, len(rows))
    steps_per_epoch = len(rows) // size
    epochs = epochs or max(PASSES, -(-LEAST_STEPS // steps_per_epoch))
    chosen, labels = torch.from_numpy(rows), torch.from_numpy(images.train_labels)

    def rows_of(step: int) -> Tensor:
        return chosen[batch_rows(step, len(rows), size, seed)]

    settings = OptimSettings(optimizer="adamw", lr=lr, weight_decay=DECAY)
    optimizers = OPTIMIZERS["adamw"](list(model.named_parameters()), settings)
    device, steps = model.head.weight.device, epochs * steps_per_epoch
    make_view = Views(mild(recipe.augmentation), recipe.normalisation)
    model.train()
    with batches(images.train, rows_of, device) as pixels:
        for step in (bar := trange(steps, desc=what, unit="step", disable=None, leave=False)):
            views = make_view(pixels[step], generator(device, "finetune", seed, step))  # (B, C, h, w)
            share = (step + 0.5) / steps
            set_rates(optimizers, lr=schedule(share, settings.warmup), decay=1.0)
            with autocast(recipe.precision, device):
                logits = model(views)
            loss = F.cross_entropy(logits.float(), labels[rows_of(step)].to(device), label_smoothing=SMOOTHING)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step % 50 == 49:  # reading it waits for the device
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise InputError(f"fine-tuning diverged: try an --lr below {lr:g}")
    model.eval()
    return f"then all weights for {epochs} epochs ({steps:,} steps of {size}), AdamW, peak learning rate {lr:g}"


def mild(settings: ViewSettings) -> ViewSettings:
    """The run's views with crops of at least half of the image and unchanged colours.

    Colour and overall shape may define a class.
    """
    return replace(settings, crop_min=max(settings.crop_min, 0.5), crop_max=1.0, jitter=0.0, grayscale=0.0, blur=0.0)


def score(model: Classifier, images: Labelled, recipe: Recipe) -> dict[str, Any]:
    """Accuracy, as a fraction, with its 95 % interval; the mean of the class accuracies; the mean confidence and the
    expected calibration error."""
    model.eval()
    p = classifier.probabilities(model, images.test, recipe.normalisation)
    right, confidence = p.argmax(axis=1) == images.test_labels, p.max(axis=1)
    labels = images.test_labels
    of_class = {name: float(right[labels == k].mean()) for k, name in enumerate(images.classes) if (labels == k).any()}
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": [*interval(right)],
        "balanced_accuracy": float(np.mean(list(of_class.values()))),
        "class_accuracy": of_class,
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, right),
    }


def said(scores: dict[str, Any], folder: Path) -> str:
    """The last line of output."""
    low, high = (percent(value) for value in scores["accuracy_interval"])
    before = f", {percent(scores['linear_accuracy'])} before fine-tuning" if "linear_accuracy" in scores else ""
    count = "1 image" if scores["test_images"] == 1 else f"{scores['test_images']:,} images"
    return (
        f"accuracy {percent(scores['accuracy'])} (95 %: {low} to {high}; chance {percent(scores['chance'])}{before}) "
        f"on {count} (mean confidence {percent(scores['confidence'])}), "
        f"trained on {scores['train_images']:,}: {str(folder)!r}"
    )


# As a probe


def fine_tuning(embedded: Embedded) -> Found:
    """The test accuracy after training all weights from the linear probe on, as `crlf finetune --mode full` does.

    It trains a copy; the run's encoder does not change.

    Raises:
        InputError: the encoder is missing or damaged, or a weight is not finite after training.
    """
    embedded = embedded.split()
    model, data = started(embedded)
    rows = np.arange(len(data.train_labels))
    how = tune(model, data, rows, embedded.recipe, epochs=0, lr=PEAK, batch=BATCH, seed=embedded.recipe.seed)
    predictions = classifier.probabilities(model, data.test, embedded.recipe.normalisation).argmax(axis=1)
    right = predictions == data.test_labels
    scores = {"fine_tuning_accuracy": float(right.mean()), "fine_tuning_interval": interval(right)}
    return Found(scores, f"the linear probe on the run's encoder ({embedded.linear[1]}), {how}")


def started(embedded: Embedded) -> tuple[classifier.Classifier, Labelled]:
    """A classifier with the linear probe's predictions, on the device, and the images labelled by its outputs."""
    (train, test), recipe = (part[:] for part in embedded.images), embedded.recipe
    names = tuple(map(str, range(1 + int(max(embedded.train_lbl.max(), embedded.test_lbl.max())))))
    data = Labelled(train, embedded.train_lbl, test, embedded.test_lbl, names, "the test images")
    data = of_present(data, np.arange(len(train)))  # test images of a class without training images count as wrong
    model = classifier.build(recipe, train.shape[1:], len(data.classes))
    model.encoder.load_state_dict(embedded.encoder.encoder.state_dict())
    probe = embedded.linear[0]
    assert isinstance(probe, Linear), "one probe, of images that are split"
    model.start_from(probe)
    return model.requires_grad_(True).to(pick_device(embedded.device)), data
