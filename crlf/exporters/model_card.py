"""The model card of an exported encoder: README.md with the front matter that the Hugging Face Hub reads.

https://huggingface.co/docs/hub/model-cards describes the fields. JSON is YAML, so each value is written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crlf.runs.payoff import payoff
from crlf.runs.run import Run

if TYPE_CHECKING:
    from crlf.exporters.source import Exported
    from crlf.recipe import Recipe

DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
}  # names on the hub
CODE = "embed.py"  # loads the files beside it, and defines `embed`
SCORES = {
    "linear_accuracy": "linear probe",
    "knn_accuracy": "nearest neighbours, k = 10",
    "crops_accuracy": "finding an image by a crop of it, without labels",
}


def card(run: Run, made: Exported, record: dict[str, Any], license: str) -> str:
    """The text of the card.

    Args:
        run: the run.
        made: the exported encoder.
        record: the contents of export.json, with the largest difference found.
        license: the licence of the weights; "other" if none was given.
    """
    recipe = run.recipe
    parts = [
        front_matter(run, made, license),
        f"# {recipe.encoder}, {recipe.method} on {data_name(recipe)}",
        f"An image encoder that learned {lesson(run)}. It turns an image into an embedding, a vector; similar images "
        "have similar embeddings. Made with CRLF.",
        f"## Use it\n\n`pip install {made.needs}`, and in the folder of this file `from embed import embed`. "
        f"`{CODE}` holds:",
        f"```python\n{made.code.strip()}\n```",
        f"## In and out\n\n{contract(made, record)}",
        f"## How it learned\n\n{settings(recipe, run.scores)}",
        f"## Evaluation\n\n{worth(run, made)}",
        f"## Limits\n\n{limits(run, record)}",
        f"## Checked\n\n{checked(record)}",
        f"## Licence\n\n{licence(license)}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(run: Run, made: Exported, license: str) -> str:
    recipe = run.recipe
    fields: dict[str, Any] = {
        "license": license,
        "library_name": made.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["crlf", recipe.method, "contrastive-learning", "self-supervised", made.library],
    }
    if run.scores.get("supervised"):
        fields["tags"].remove("self-supervised")
    if recipe.data in DATASETS:
        fields["datasets"] = [DATASETS[recipe.data]]
    if any(name in run.scores for name in SCORES):
        fields["metrics"] = ["accuracy"]
    return yaml(fields)


def yaml(fields: dict[str, Any]) -> str:
    """The fields as front matter."""
    return "\n".join(["---", *(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items()), "---"])


def data_name(recipe: Recipe) -> str:
    """The name of the data set; for your own images the last part of the path, since the rest may be private."""
    return Path(recipe.data).name


def public(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe, without the folders that lead to the data."""
    return recipe.to_dict() | {"data": data_name(recipe)}


def lesson(run: Run) -> str:
    if run.recipe.as_given:
        return f"elsewhere: its weights are those of {origin(run.scores['started_from'])}"
    how = "with labels" if run.scores.get("supervised") else "without labels"
    return f"{how}, by {run.recipe.method}, from {data_name(run.recipe)}"


def contract(made: Exported, record: dict[str, Any]) -> str:
    text = (
        f"- In: {record['input']}, channels first, as the pixels are stored (0..255); any number B of images. "
        "They are normalised inside.\n"
        f"- Out: float32 (B, D): {made.embedding}. No projector. Divide a row by its length to compare by cosine."
    )
    if made.library == "timm":
        text = text.replace("They are normalised inside.", "The code above normalises them.")
    return text + (f"\n- {made.notes}" if made.notes else "")


def settings(recipe: Recipe, scores: dict[str, Any]) -> str:
    small = f" and {count} small ones" if (count := recipe.augmentation.local_views) else ""
    facts = {
        "method": recipe.method,
        "encoder": recipe.encoder,
        "data": data_name(recipe),
        "epochs": scores.get("epochs", recipe.epochs),
        "batch": f"{recipe.batch_size} images, {recipe.views} views each{small}",
        "optimizer": f"{recipe.optim.optimizer}, learning rate {recipe.optim.lr:g}",
        "started from": origin(scores.get("started_from", {})),
        "teacher": origin(scores.get("teacher", {})),
        "seed": recipe.seed,
        "training": f"{scores['train_seconds']:.0f} s on {scores['device']}" if "train_seconds" in scores else "",
        "compute": f"{scores['pflop']:.3g} PFLOP" if "pflop" in scores else "",
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value != ""]
    return "\n".join(["| | |", "|---|---|", *rows, "", "`recipe.json` holds every setting."])


def origin(weights: dict[str, Any]) -> str:
    """The initial weights without their folder, with their licence and SHA-256."""
    if not weights:
        return ""
    source = weights["source"]
    name = source if source.startswith(("timm:", "hf-hub:")) else Path(source).name
    licence = f"licence {weights['licence']}" if weights.get("licence") else "licence not known"
    return f"{name} ({licence}, SHA-256 {weights['sha256'][:16]}…)"


def worth(run: Run, made: Exported) -> str:
    scores = run.scores
    found = list(measured(scores))
    if not found:
        return "Not measured: the images have no labels." if run.unlabelled else "Not measured."
    paid = payoff(scores)
    first = [f"{paid.sentence}\n"] if paid else []
    table = [*first, "| measure | accuracy | protocol |", "|---|---|---|", *found]
    protocol = scores.get("protocol", {}).get("embedding")
    if protocol == made.embedding:
        return "\n".join(table)
    note = f"Measured on {protocol}; this file gives {made.embedding}, whose own scores were not measured."
    return "\n".join([*table, "", note])


def measured(scores: dict[str, Any]) -> Iterator[str]:
    """The rows of the table: each test accuracy with its protocol."""
    for name, what in SCORES.items():
        if name in scores:
            how = str(scores.get("protocol", {}).get(name.removesuffix("_accuracy"), "")).replace("|", "\\|")
            yield f"| {what} | {100 * scores[name]:.1f} % | {how} |"
    if "chance" in scores and any(name in scores for name in SCORES):
        yield f"| chance | {100 * scores['chance']:.1f} % | always the most frequent class |"


def limits(run: Run, record: dict[str, Any]) -> str:
    height, width = record["input"].rstrip(")").split(", ")[-2:]
    rows = [
        f"It was trained on {height} × {width} images of {data_name(run.recipe)} only. Other images, sizes and colours "
        "were not tested.",
        "It gives embeddings, not classes. Images with similar embeddings may share a background or a colour, not a "
        "meaning.",
        "The embeddings cannot represent what the training images do not show. Do not use them to make decisions about "
        "people.",
    ]
    return "\n".join(f"- {row}" for row in rows)


def checked(record: dict[str, Any], code: str = CODE, own: str = "the run's encoder") -> str:
    """How the files were compared with the network in CRLF, and the result."""
    return (
        f"`{code}` was run in a fresh process without CRLF on {record['images']} {record['images_are']}, in batches "
        f"of several sizes. The largest difference from {own} is {record['max_difference']:.1e}, where the "
        f"largest number is {record['largest_number']:.3g}. `export.json` says with which versions."
    )


def licence(license: str) -> str:
    if license == "other":
        return "No licence was given: ask the source of this file. The terms of the data set may apply to the weights."
    return f"{license}, as given by the maker of this export. The terms of the data set may apply to the weights too."
