"""The images that the report shows, with their places, neighbours, labels and predictions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from crlf.data.thumbnails import sample
from crlf.errors import InputError
from crlf.runs.run import THUMBNAILS, Run
from crlf.visualization.figures.projections import kept
from crlf.visualization.figures.run_arrays import NotDrawn, class_indices, embedded
from crlf.visualization.report.html import data_uri

MISTAKES = 50
SMOOTH = 64  # pixels; smaller tiles show their pixels as squares


@dataclass(frozen=True, eq=False)
class Shown:
    """The images of the maps, and after them the most confident mistakes that are not among these.

    Image i of n is a point of the maps if i is less than `points`.
    """

    split: str  # "test", or "training" where no test images were held out
    total: int  # images in the split
    pictured: int  # of these have a picture
    points: int
    maps: dict[str, np.ndarray]  # float32 (points, 2), by name
    near: np.ndarray  # int (points, k), places of the nearest others
    cosine: np.ndarray  # float32 (points, k)
    cluster: np.ndarray  # int (points,)
    thumbnails: np.ndarray  # uint8 (n, h, w, 3)
    ids: list[str]  # n
    names: list[str]  # of the classes
    labels: np.ndarray | None  # int64 (n,)
    predicted: np.ndarray | None  # int64 (n,)
    confidence: np.ndarray | None  # float32 (n,), the probability of what was predicted
    mistakes: np.ndarray  # int64 (at most 50,), places, the most confident first

    def __len__(self) -> int:
        return len(self.thumbnails)


def shown(run: Run) -> Shown | None:
    """What the report shows; None where embeddings, maps or thumbnails are not there (yet).

    Raises:
        InputError: a file is damaged, or does not fit the others.
    """
    try:
        split, embeddings, labels, names = embedded(run, least=2)
    except NotDrawn:
        return None
    made = kept(run, embeddings)
    if made is None or not run.file(THUMBNAILS).exists():
        return None
    N, points = len(embeddings), len(made["rows"])
    pictures, rows = run.array(THUMBNAILS), sample(N)  # the maps show the first of these rows
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != len(rows):
        raise InputError(f"{THUMBNAILS} must be uint8 ({len(rows)}, h, w, 3), not {pictures.dtype} {pictures.shape}")
    predicted, confidence = predictions(run, names, N)
    wrong = np.empty(0, dtype=np.int64)
    if labels is not None and predicted is not None:
        wrong = most_confident_mistakes(labels[rows], predicted[rows], None if confidence is None else confidence[rows])
    places = np.concatenate([np.arange(points), wrong[wrong >= points]])
    chosen = rows[places]
    ids = identities(run, split, N)
    return Shown(
        split=split, total=N, pictured=len(rows), points=points,
        maps={name: made[name] for name in ("tsne", "umap", "pca") if name in made},
        near=made["near"], cosine=made["cosine"], cluster=made["cluster"],
        thumbnails=pictures[places], ids=[ids[row] for row in chosen], names=names,
        labels=None if labels is None else labels[chosen],
        predicted=None if predicted is None else predicted[chosen],
        confidence=None if confidence is None else confidence[chosen],
        mistakes=np.array([int(np.flatnonzero(places == place)[0]) for place in wrong], dtype=np.int64),
    )  # fmt: skip


def predictions(run: Run, names: list[str], N: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What the linear probe predicts, int64 (N,), and how sure it is, float32 (N,); None for what is not there."""
    if not names or not run.file("test_pred.npy").exists():
        return None, None
    predicted = class_indices(run, "test_pred.npy", names, rows=N)
    if not run.file("test_prob.npy").exists():
        return predicted, None
    probabilities = run.array("test_prob.npy")
    if probabilities.ndim != 2 or len(probabilities) != N or probabilities.shape[1] <= predicted.max():
        raise InputError(f"test_prob.npy must be ({N}, K), a column a class, not {probabilities.shape}")
    return predicted, probabilities[np.arange(N), predicted].astype(np.float32)


def most_confident_mistakes(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray | None) -> np.ndarray:
    """The places of at most 50 wrong predictions, the most confident first; all arguments (n,)."""
    wrong = np.flatnonzero(labels != predicted)
    if confidence is not None:
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return wrong[:MISTAKES]


def identities(run: Run, split: str, N: int) -> list[str]:
    """The name of each image: of files the relative path."""
    name = {"training": "train"}.get(split, split)  # of its files
    ids = run.ids(name)
    if ids is not None and len(ids) != N:
        raise InputError(f"{name}_ids.json must hold {N} names, not {len(ids)}")
    return ids or [str(row) for row in range(N)]


def across(n: int, h: int, w: int) -> int:
    """How many tiles of h × w pixels lie side by side in a sheet of n, so that it is about square."""
    return max(1, min(n, round((n * h / w) ** 0.5)))


def rim(h: int) -> int:
    """Pixels around each tile of a sheet: large tiles are scaled smoothly, which mixes in the pixel beside a tile."""
    return 1 if h >= SMOOTH else 0


def contact_sheet(tiles: np.ndarray) -> str:
    """All tiles in one picture, row by row, each within its `rim`: uint8 (n, h, w, 3) -> a data URI.

    WebP has tiles of 5,000 images of 32 × 32 pixels in 3 MB; 5,000 data URIs would take twice that, and slow the page.
    """
    n, h, w, _ = tiles.shape
    columns, edge = across(n, h, w), (rim(h), rim(h))
    tiles = np.pad(tiles, ((0, 0), edge, edge, (0, 0)), mode="edge")
    h, w = tiles.shape[1:3]
    rows = -(-n // columns)
    full = np.zeros((rows * columns, h, w, 3), dtype=np.uint8)
    full[:n] = tiles
    sheet = full.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=82, method=2)
    return data_uri("image/webp", buffer.getvalue())
