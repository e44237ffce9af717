"""The model card of an exported classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crlf.exporters.model_card import DATASETS, checked, data_name, licence, settings, yaml

if TYPE_CHECKING:
    from crlf.evaluation.classifier import Loaded
    from crlf.exporters.source import Exported

CODE = "classify.py"  # loads the files beside it, and defines `classify` and `classes`
SHOWN = 100  # classes in the card; export.json has all


def card(loaded: Loaded, scores: dict[str, Any], made: Exported, record: dict[str, Any], license: str) -> str:
    """The text of the card.

    Args:
        loaded: the classifier.
        scores: the scores from `crlf finetune`; empty if their file is missing.
        made: the exported classifier.
        record: the contents of export.json, with the largest difference found.
        license: the licence of the weights; "other" if none was given.
    """
    recipe, count = loaded.recipe, len(loaded.classes)
    parts = [
        front_matter(loaded, made, license),
        f"# {recipe.encoder}: {count:,} classes of {labels_of(loaded)}",
        f"An image classifier: {encoder_in_words(loaded)}, with a linear layer on it. It gives an image a probability "
        "for each class. Made with CRLF.",
        f"## Use it\n\n`pip install {made.needs}`, and in the folder of this file `from classify import classes, "
        f"classify`. `{CODE}` holds:",
        f"```python\n{made.code.strip()}\n```",
        f"## In and out\n\n{contract(made, record)}",
        f"## Classes\n\n{listed(loaded.classes)}",
        f"## How it learned\n\n{lesson(loaded, scores)}\n\nIts encoder, before that:\n\n{settings(recipe, {})}",
        f"## Evaluation\n\n{worth(scores)}",
        f"## Limits\n\n{limits(loaded, record)}",
        f"## Checked\n\n{checked(record, CODE, 'the classifier')}",
        f"## Licence\n\n{licence(license)}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(loaded: Loaded, made: Exported, license: str) -> str:
    sets = [DATASETS[name] for name in dict.fromkeys((loaded.recipe.data, loaded.how.get("data"))) if name in DATASETS]
    fields: dict[str, Any] = {
        "license": license,
        "library_name": made.library,
        "pipeline_tag": "image-classification",
        "tags": ["crlf", loaded.recipe.method, "contrastive-learning", made.library],
        **({"datasets": sets} if sets else {}),
        "metrics": ["accuracy"],
    }
    return yaml(fields)


def labels_of(loaded: Loaded) -> str:
    """The name of the labelled data; for a path its last part, since the rest may be private."""
    return Path(str(loaded.how.get("data", ""))).name


def encoder_in_words(loaded: Loaded) -> str:
    start = f"an encoder that learned by {loaded.recipe.method} from {data_name(loaded.recipe)}"
    return f"{start}, all of whose weights were then trained on" if loaded.how.get("mode") == "full" else start


def contract(made: Exported, record: dict[str, Any]) -> str:
    text = (
        f"- In: {record['input']}, channels first, as the pixels are stored (0..255); any number B of images. "
        "They are normalised inside.\n"
        f"- Out: float32 (B, {len(record['classes'])}), each row a distribution: column k is the probability of class "
        f"k.\n- Inside, the embedding is {made.embedding}."
    )
    if made.library == "timm":
        text = text.replace("They are normalised inside.", "The code above normalises them.")
    return text + (f"\n- {made.notes}" if made.notes else "")


def listed(classes: Sequence[str]) -> str:
    """The class names, one per row, with their output columns."""
    rows = [f"| {k} | {shown(name)} |" for k, name in enumerate(classes[:SHOWN])]
    more = len(classes) - SHOWN
    rest = [f"\nand {more:,} more, which `export.json` names."] if more > 0 else []
    return "\n".join(["| output | class |", "|---|---|", *rows, *rest])


def shown(name: str) -> str:
    """A name escaped for a cell of a table."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def lesson(loaded: Loaded, scores: dict[str, Any]) -> str:
    count = f"{scores['train_images']:,} labelled images" if "train_images" in scores else "labelled images"
    protocol = str(scores.get("protocol", ""))
    for place in (loaded.how.get("data"), loaded.how.get("test")):  # only the last part of a path, as above
        protocol = protocol.replace(str(place), Path(str(place)).name)
    how = f" The protocol: {protocol}." if protocol else ""
    return f"It learned its classes from {count} of {labels_of(loaded)}.{how}"


def worth(scores: dict[str, Any]) -> str:
    """The accuracy and the calibration on the test images."""
    if "accuracy" not in scores:
        return "Not measured."
    low, high = scores["accuracy_interval"]
    rows = [f"| accuracy | {100 * scores['accuracy']:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f} %) |"]
    told = {
        "balanced_accuracy": "mean of the classes' accuracies",
        "chance": "chance: always the most frequent class",
        "confidence": "mean confidence (the largest probability)",
        "calibration_error": "expected calibration error",
    }
    rows += [f"| {what} | {100 * scores[name]:.1f} % |" for name, what in told.items() if name in scores]
    if "temperature" in scores:
        rows.append(f"| temperature of the logits (already applied to the weights) | {scores['temperature']:.2f} |")
    head = [f"On {scores['test_images']:,} images not used for training:", "", "| measure | value |", "|---|---|"]
    return "\n".join([*head, *rows])


def limits(loaded: Loaded, record: dict[str, Any]) -> str:
    height, width = record["input"].rstrip(")").split(", ")[-2:]
    rows = [
        f"It was trained on {height} × {width} images of {labels_of(loaded)}. Other images, sizes and colours were not "
        "tested.",
        "It always predicts one of its classes, even for an image of none of them.",
        "It may recognise a class by its background or colour. Do not use it to make decisions about people.",
    ]
    return "\n".join(f"- {row}" for row in rows)
