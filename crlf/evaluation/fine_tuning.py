"""What the encoder is worth as a start: all of its weights trained on with every label."""

from __future__ import annotations

import numpy as np

from crlf.evaluation import classifier
from crlf.evaluation.embedded import Embedded, Found
from crlf.evaluation.finetune import BATCH, PEAK, of_present, tune
from crlf.evaluation.labelled import Labelled
from crlf.metrics.intervals import interval
from crlf.runtime.devices import pick_device


def fine_tuning(images: Embedded) -> Found:
    """The test accuracy after all weights were trained on, from the linear probe, as `crlf finetune --mode full` does.

    The run's encoder stays as it is: what is trained is a copy.

    Raises:
        InputError: the encoder is missing or damaged, or a weight is not finite in the end.
    """
    model, data = started(images)
    rows = np.arange(len(data.train_labels))
    how = tune(model, data, rows, images.recipe, epochs=0, lr=PEAK, batch=BATCH, seed=images.recipe.seed)
    predictions = classifier.probabilities(model, data.test, images.recipe.augmentation).argmax(axis=1)
    right = predictions == data.test_labels
    scores = {"fine_tuning_accuracy": float(right.mean()), "fine_tuning_interval": interval(right)}
    return Found(scores, f"the linear probe on the run's encoder ({images.linear[1]}), {how}")


def started(images: Embedded) -> tuple[classifier.Classifier, Labelled]:
    """A classifier that predicts what the linear probe does, on the device, and the images with places of classes."""
    (train, test), recipe = images.images, images.recipe
    names = tuple(map(str, range(1 + int(max(images.train_lbl.max(), images.test_lbl.max())))))
    data = Labelled(train, images.train_lbl, test, images.test_lbl, names, "the test images")
    data = of_present(data, np.arange(len(train)))  # a test image of a class that nothing is learned of is wrong
    model = classifier.build(recipe, train.shape[1:], len(data.classes))
    model.encoder.load_state_dict(images.encoder.encoder.state_dict())
    model.start_from(images.linear[0])
    return model.requires_grad_(True).to(pick_device(images.device)), data
