"""The end of the report: every number, every setting, the command that repeats the run, every file."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from crlf.runs.run import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CLASSES,
    ENCODER,
    FIGURES,
    LOG,
    LOSS,
    MAPS,
    PDFS,
    RECIPE,
    REPORT,
    SCORES,
    TABLE,
    THUMBNAILS,
    VIEWS,
    Run,
)
from crlf.text import size
from crlf.visualization.report.html import Section, data_uri, plain, section

HOLDS = {
    RECIPE: "every setting; the run can be repeated from it alone",
    LOG: "one JSON object for each logged step",
    CHECKPOINT: "what --resume needs: weights, optimizer state, place",
    CHECKPOINT_BEFORE: "the checkpoint of the epoch before, in case the last one is damaged",
    ENCODER: "the trained encoder's state dict, CPU tensors",
    LOSS: "the mean loss of each epoch, float64",
    VIEWS: "a few images and views of them, uint8 (n, 1 + V, C, h, w)",
    SCORES: "every measured number, its protocol beside it",
    "train_emb.npy": "embeddings of the training images, float32 (N, D); row i is image i",
    "test_emb.npy": "embeddings of the images that are tested, float32 (N, D); row i is image i",
    "train_ids.json": "the name of each training image, in the order of the rows",
    "test_ids.json": "the name of each test image, in the order of the rows",
    "train_lbl.npy": "labels of the training images, int64 (N,)",
    "test_lbl.npy": "labels of the images that are tested, int64 (N,)",
    CLASSES: "the names of the classes",
    THUMBNAILS: "small pictures of the images that are tested, up to 10,000 drawn at random, uint8 (n, h, w, 3)",
    TABLE: "name, split, label, class and embedding of every image, one table",
    "test_pred.npy": "what the linear probe predicts for the images that are tested, int64 (N,)",
    "test_prob.npy": "the probability that it gives to each class, float32 (N, K)",
    MAPS: "the embeddings in a plane, their neighbours and clusters",
    "loss_curve.png": "the loss over training",
    "health.png": "rank, alignment, uniformity and spread of the features over training",
    "confusion_matrix.png": "what the linear probe predicted for each class",
    "pca_embedding.png": "embeddings along their two directions of greatest variance",
    "tsne_embedding.png": "embeddings in a plane that keeps neighbours",
    "views.png": "views as the network sees them",
    "filters.png": "the filters of the encoder's first layer",
    **{name: f"{name.removesuffix('.pdf')}.png as vector PDF, for papers" for name in PDFS},
    REPORT: "this page",
}


def settings(recipe: dict[str, Any]) -> Section:
    """recipe.json: the run's own settings, then section by section."""
    sections = {"run": {key: value for key, value in recipe.items() if not isinstance(value, dict)}}
    sections |= {key: value for key, value in recipe.items() if isinstance(value, dict)}
    rows = {name: [(key, plain(value), "") for key, value in values.items()] for name, values in sections.items()}
    return section("Settings", "settings.html", sections=rows)


def repeat(run: Run) -> Section:
    """The command that repeats the run, with the program that makes this page."""
    out = shlex.quote(f"{run.path}_again")
    command = f"{program()} --recipe {shlex.quote(str(run.file(RECIPE)))} --out {out}"
    return section("Repeat it", "repeat.html", command=command)


def program() -> str:
    """The command that starts a whole run: the script if it is running, otherwise the installed command."""
    script = "simclr_train.py"
    return f"python {script}" if Path(sys.argv[0]).name == script else "crlf run"


def figures(run: Run) -> Section | None:
    """The figures that `crlf draw` made."""
    found = [drawing(run, name) for name in FIGURES if readable(run.file(name))]
    return section("Figures", "figures.html", figures=found) if found else None


def files(run: Run) -> Section:
    held = [name for name in run.held() if name != REPORT]
    rows = [(name, HOLDS.get(name, ""), size(run.file(name).stat().st_size)) for name in held]
    return section("Files", "files.html", rows=rows)


def drawing(run: Run, name: str) -> dict[str, Any]:
    """A figure; what the PNG says about itself is the text for those who cannot see it."""
    data = run.file(name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        text = str(image.info.get("Description") or HOLDS.get(name, name))
    return {"source": data_uri("image/png", data), "width": width, "height": height, "text": text}


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format == "PNG"
    except (OSError, UnidentifiedImageError):
        return False
