"""The sections of the report with pictures: maps, mistakes, neighbours, clusters, views and filters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from crlf.runs.run import VIEWS, Run
from crlf.visualization.figures.projections import NEAR, perplexity_of
from crlf.visualization.figures.run_arrays import NotDrawn, needed
from crlf.visualization.figures.views_and_filters import drawn, filter_grid, first_filters, mosaic
from crlf.visualization.report.html import Section, data_uri, plural, section
from crlf.visualization.report.pictures import MISTAKES, Shown, across

MAPS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
ROWS = 10  # rows of pictures
SEEN = 12  # pictures of a cluster


def picture(shown: Shown, i: int, text: str, other: bool = False) -> dict[str, Any]:
    """Image i from the sheet of pictures: a button that enlarges it."""
    columns = across(len(shown), *shown.thumbnails.shape[1:3])
    return {"x": i % columns, "y": i // columns, "image": i, "text": text, "other": other}


def called(shown: Shown, i: int) -> str:
    """A short name of an image: its class, or its own name without labels."""
    return shown.ids[i] if shown.labels is None else shown.names[shown.labels[i]]


# The maps


def maps(shown: Shown) -> Section:
    """The scatter plot, its switches, and the card of the selected image."""
    colours = {"group": "class" if shown.labels is not None else "cluster"}
    if shown.labels is not None and shown.predicted is not None:
        colours["right"] = "right or wrong"
    if shown.confidence is not None:
        colours["sure"] = "confidence"
    named = {name: MAPS[name] for name in shown.maps}
    ways = {"points": "points", "pictures": "pictures"}
    if shown.labels is None:  # a cluster's number says less than its pictures
        ways = dict(reversed(ways.items()))
    return section(
        "Maps of the embeddings", "maps.html", "maps",
        what=what_they_show(shown), maps=named, ways=ways, colours=colours, groups=groups(shown),
    )  # fmt: skip


def what_they_show(shown: Shown) -> str:
    """A text on the images that are shown, and on how to read each map."""
    part = f"{shown.points:,} of the {shown.total:,} {shown.split} images, drawn at random"
    which = part if shown.points < shown.total else f"All {shown.total:,} {shown.split} images"
    words = [f"{which}. Images that lie close together have similar embeddings."]
    if "tsne" in shown.maps:
        how = f"cosine, perplexity {perplexity_of(shown.points):.3g}"
        words.append(
            f"t-SNE ({how}) keeps neighbours together; the size of a group and its distance from others mean little."
        )
    if "umap" in shown.maps:
        words.append("UMAP (cosine, 15 neighbours) keeps neighbours together and some of the distances.")
    words.append("PCA shows the two directions of greatest variance.")
    return " ".join(words)


def groups(shown: Shown) -> list[tuple[str, int]]:
    """The name of each class, or cluster, and how many points it has: the legend of the map, and what isolates it."""
    groups = shown.cluster if shown.labels is None else shown.labels[: shown.points]
    counts = np.bincount(groups, minlength=1 if shown.labels is None else len(shown.names))
    return [(group_name(shown, k), count) for k, count in enumerate(counts.tolist())]


def group_name(shown: Shown, k: int) -> str:
    return f"cluster {k + 1}" if shown.labels is None else shown.names[k]


def facts(shown: Shown) -> dict[str, Any]:
    """The data of the images for script.js."""
    n, h, w, _ = shown.thumbnails.shape
    groups = shown.cluster if shown.labels is None else shown.labels
    return {
        "points": shown.points,
        "columns": across(n, h, w),
        "labelled": shown.labels is not None,
        "groups": [group_name(shown, k) for k in range(max(len(shown.names), 1 + int(groups.max())))],
        "group": groups.tolist(),
        "predicted": None if shown.predicted is None else shown.predicted.tolist(),
        "sure": None if shown.confidence is None else [round(float(p), 3) for p in shown.confidence],
        "ids": shown.ids,
        "near": shown.near.tolist(),
        "cosine": [[round(float(c), 3) for c in row] for row in shown.cosine],
    }


# Pictures in rows


def mistakes(shown: Shown) -> Section | None:
    """The most confident mistakes."""
    if not len(shown.mistakes) or shown.labels is None or shown.predicted is None:
        return None
    among = f"the {shown.pictured:,} of {shown.total:,} {shown.split} images that have a picture"
    among = among if shown.pictured < shown.total else f"all {shown.total:,} {shown.split} images"
    found = [mistake(shown, i) for i in shown.mistakes.tolist()]
    what = f"{which_mistakes(len(found), shown.confidence is not None)}, among {among}"
    return section("Most confident mistakes", "mistakes.html", "mistakes", what=what, mistakes=found)


def which_mistakes(n: int, sure: bool) -> str:
    if n == MISTAKES:
        return f"The {n} mistakes in which the linear probe was most confident" if sure else f"{n} mistakes"
    if n == 1:
        return "The only mistake of the linear probe"
    return f"All {n} mistakes of the linear probe{', the most confident first' if sure else ''}"


def mistake(shown: Shown, i: int) -> dict[str, Any]:
    assert shown.labels is not None and shown.predicted is not None
    said, true = shown.names[shown.predicted[i]], shown.names[shown.labels[i]]
    sure = f"{100 * shown.confidence[i]:.0f} %" if shown.confidence is not None else ""
    text = f"{true}, taken for {said}{' ' * bool(sure)}{sure}: {shown.ids[i]}"
    return {"picture": picture(shown, i, text), "said": said, "true": true, "sure": sure}


def neighbours(shown: Shown) -> Section:
    """An image of each class, or of each cluster, and its nearest neighbours."""
    groups = shown.cluster if shown.labels is None else shown.labels[: shown.points]
    _, first = np.unique(groups, return_index=True)
    kind, kinds = ("cluster", "clusters") if shown.labels is None else ("class", "classes")
    each = f"each {kind}" if len(first) <= ROWS else f"each of the first {ROWS} {kinds}"
    outlined = " Neighbours of another class are outlined." if shown.labels is not None else ""
    what = (
        f"One random image of {each}, and the {shown.near.shape[1]} images with the most similar embeddings "
        f"(by cosine) {among(shown)}.{outlined} Click a picture to enlarge it."
    )
    strips = [strip(shown, i, [i, *shown.near[i].tolist()]) for i in first[:ROWS].tolist()]
    return section("Nearest neighbours", "strips.html", "neighbours", what=what, strips=strips)


def among(shown: Shown) -> str:
    """A text on the images among which neighbours are searched."""
    which = f"among the {shown.points:,} images of the map"
    return which if shown.split == "training" else f"{which}: test images only, no training image is searched"


def strip(shown: Shown, query: int, images: Sequence[int]) -> dict[str, Any]:
    """A row of pictures; the first is the query."""
    if shown.labels is None:
        return cluster_strip(shown, int(shown.cluster[query]), images)
    other = shown.labels != shown.labels[query]
    pictures = [picture(shown, i, called(shown, i), bool(other[i])) for i in images]
    return {"name": called(shown, query), "cluster": None, "count": None, "pictures": pictures, "most": 1 + NEAR}


def cluster_strip(shown: Shown, k: int, images: Sequence[int], count: int | None = None) -> dict[str, Any]:
    """A row of pictures of cluster k, which counts from 0 here; and how many images the cluster has."""
    pictures, most = [picture(shown, i, called(shown, i)) for i in images], 1 + NEAR if count is None else SEEN
    return {"name": f"cluster {k + 1}", "cluster": k, "count": count, "pictures": pictures, "most": most}


def clusters(shown: Shown) -> Section | None:
    """The clusters of k-means, for images without labels."""
    if shown.labels is not None:
        return None
    strips = [
        cluster_strip(shown, k, np.flatnonzero(shown.cluster == k)[:SEEN].tolist(), count)
        for k, count in enumerate(np.bincount(shown.cluster).tolist())
    ]
    what = (
        f"k-means divides the normalised embeddings into {plural(len(strips), 'cluster')}, the largest "
        f"first. A row shows up to {SEEN} random images of its cluster."
    )
    return section("Clusters", "strips.html", what=what, strips=strips)


# What the network sees


def seen(run: Run) -> Section | None:
    """The views, and the filters of the first layer."""
    found = [made for made in (views(run), filters(run)) if made]
    return section("What the network sees", "seen.html", "views", pictures=found) if found else None


def views(run: Run, images: int = 10, most: int = 8) -> dict[str, Any] | None:
    try:
        tiles = needed(run, VIEWS)[:images, : 1 + most]  # (n, 1 + V, C, h, w)
    except NotDrawn:
        return None
    if tiles.ndim != 5 or tiles.dtype != np.uint8 or not tiles.size:
        return None  # `crlf draw` says so
    n, rows, _, h, w = tiles.shape
    text = f"Top row: {plural(n, 'image')}. Below each: {plural(rows - 1, 'random view')} of it, {h} × {w} pixels. "
    gap = max(1, w // 16)
    made = pixels(mosaic(tiles, gap), mosaic(np.zeros_like(tiles), gap), "Views", text + drawn(run.settings))
    return made | {"wide": n > 5}


def filters(run: Run) -> dict[str, Any] | None:
    try:
        tiles = first_filters(run)
    except NotDrawn:
        return None
    n, _, h, w = tiles.shape
    text = f"{n:,} filters of {h} × {w} weights, each scaled by its largest weight. Gray is zero."
    tiles, columns = tiles[:256], min(16, n)
    gaps = filter_grid(np.zeros_like(tiles), columns)
    return pixels(filter_grid(tiles, columns), gaps, "First-layer filters", text)


def pixels(image: np.ndarray, gaps: np.ndarray, title: str, text: str) -> dict[str, Any]:
    """A picture whose pixels stay pixels: uint8 (h, w, 3); what is white in `gaps`, of the same shape, is left out."""
    h, w, _ = image.shape
    alpha = 255 - gaps[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([image, alpha])).save(buffer, "PNG", optimize=True)
    source = data_uri("image/png", buffer.getvalue())
    return {"source": source, "width": w, "height": h, "title": title, "text": text, "wide": False}
