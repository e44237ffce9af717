"""What the embeddings hold, in pictures: maps, mistakes, neighbours, clusters, views and filters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from crlf.runs.run import VIEWS, Run
from crlf.visualization.figures.projections import perplexity_of
from crlf.visualization.figures.run_arrays import NotDrawn, needed
from crlf.visualization.figures.views_and_filters import drawn, filter_grid, first_filters, mosaic
from crlf.visualization.report.html import data_uri, plural, section
from crlf.visualization.report.pictures import MISTAKES, Shown, across

MAPS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
ROWS = 10  # of pictures
SEEN = 12  # pictures of a cluster


def picture(shown: Shown, i: int, text: str, button: bool = False) -> str:
    """Image i from the sheet of pictures; as a button it shows itself in the map."""
    columns = across(len(shown), *shown.thumbnails.shape[1:3])
    place = f'style="--x:{i % columns};--y:{i // columns}"'
    if button and i < shown.points:
        return f'<button type=button class=pic data-image={i} {place} aria-label="{escape(text)}"></button>'
    return f'<span class=pic role=img {place} aria-label="{escape(text)}"></span>'


def called(shown: Shown, i: int) -> str:
    """An image in a word or two: its class, or its name where it has none."""
    return shown.ids[i] if shown.labels is None else shown.names[shown.labels[i]]


# The maps


def maps(shown: Shown) -> str:
    """The scatter plot, its switches, and the card of the image that is looked at."""
    radios = choice("Map", "map", {name: MAPS[name] for name in shown.maps})
    colours = {"group": "class" if shown.labels is not None else "cluster"}
    if shown.labels is not None and shown.predicted is not None:
        colours["right"] = "right or wrong"
    if shown.confidence is not None:
        colours["sure"] = "confidence"
    radios += choice("Colour", "colour", colours) if len(colours) > 1 else ""
    wrong = "<label class=check><input type=checkbox id=wrong> only mistakes</label>" if "right" in colours else ""
    text = "Map of the embeddings, a point an image. Arrow keys go from one to another, Enter holds it, Escape lets go."
    html = f"""<p>{escape(what_they_show(shown))}</p>
<div class="row controls">{radios}{wrong}</div>
<div class=chips id=chips role=group aria-label="Isolate a {colours["group"]}">{chips(shown)}</div>
<div class=explorer>
<div class="card stage"><div id=map-frame tabindex=0 role=application aria-label="{text}">
<div id=map-plot class=plot></div><div id=peek class=pic hidden></div></div>
<div id=scale class="scale soft" hidden></div></div>
<aside id=face class=card aria-live=polite><p class=soft>Point at an image, tap it, or reach the map with Tab and go
from image to image with the arrow keys. A click holds it. Its nearest neighbours are joined to it by lines.</p></aside>
</div>
<noscript><p class=missing>The maps need JavaScript; as pictures they are under
<a href="#figures">Figures</a>.</p></noscript>
"""
    return section("Maps of the embeddings", html, "maps")


def what_they_show(shown: Shown) -> str:
    """Which images are shown, and how each map is to be read."""
    part = f"{shown.points:,} of the {shown.total:,} {shown.split} images, drawn at random"
    which = part if shown.points < shown.total else f"All {shown.total:,} {shown.split} images"
    words = [f"{which}: near means alike."]
    if "tsne" in shown.maps:
        how = f"cosine, perplexity {perplexity_of(shown.points):.3g}"
        words.append(f"t-SNE ({how}) keeps neighbours; the size and the distance of its clusters mean little.")
    if "umap" in shown.maps:
        words.append("UMAP (cosine, 15 neighbours) keeps neighbours and something of the distances.")
    words.append("PCA keeps the two directions of greatest variance. Training saw no label.")
    return " ".join(words)


def choice(title: str, name: str, options: dict[str, str]) -> str:
    """Radio buttons, the first chosen."""
    inputs = "".join(
        f"<label><input type=radio name={name} value={value}{' checked' * (i == 0)}> {escape(text)}</label>"
        for i, (value, text) in enumerate(options.items())
    )
    return f"<fieldset><legend>{escape(title)}</legend>{inputs}</fieldset>"


def chips(shown: Shown) -> str:
    """A button for each class, or cluster: the legend of the map, and what isolates it."""
    groups = shown.cluster if shown.labels is None else shown.labels[: shown.points]
    counts = np.bincount(groups, minlength=1 if shown.labels is None else len(shown.names))
    return "".join(
        f'<button type=button class=chip aria-pressed=false data-group={k}><i class="dot c{k % 10}"></i>'
        f"{escape(group_name(shown, k))} <small>{count:,}</small></button>"
        for k, count in enumerate(counts.tolist())
    )


def group_name(shown: Shown, k: int) -> str:
    return f"cluster {k + 1}" if shown.labels is None else shown.names[k]


def facts(shown: Shown) -> dict[str, Any]:
    """What script.js must know of the images."""
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


def mistakes(shown: Shown) -> str:
    """The most confident mistakes."""
    if not len(shown.mistakes) or shown.labels is None or shown.predicted is None:
        return ""
    items = "".join(mistake(shown, i) for i in shown.mistakes.tolist())
    among = f"the {shown.pictured:,} of {shown.total:,} {shown.split} images that have a picture"
    among = among if shown.pictured < shown.total else f"all {shown.total:,} {shown.split} images"
    sure = "at which the linear probe was most confident" if shown.confidence is not None else "of the linear probe"
    some = f"The {len(shown.mistakes)} mistakes" if len(shown.mistakes) == MISTAKES else "All mistakes"
    html = f"<p>{some} {sure}, among {among}: what it said, and below it the truth.</p>\n<ul class=pics>{items}</ul>\n"
    return section("Most confident mistakes", html, "mistakes")


def mistake(shown: Shown, i: int) -> str:
    assert shown.labels is not None and shown.predicted is not None
    said, true = shown.names[shown.predicted[i]], shown.names[shown.labels[i]]
    sure = f" {100 * shown.confidence[i]:.0f} %" if shown.confidence is not None else ""
    text = f"{true}, taken for {said}{sure}: {shown.ids[i]}"
    return (
        f"<li>{picture(shown, i, text, button=True)}<span class=said>{escape(said)}{sure}</span>"
        f"<span class=soft>{escape(true)}</span></li>\n"
    )


def neighbours(shown: Shown) -> str:
    """An image of each class, or of each cluster, and its nearest neighbours."""
    groups = shown.cluster if shown.labels is None else shown.labels[: shown.points]
    _, first = np.unique(groups, return_index=True)
    rows = "".join(strip(shown, i, [i, *shown.near[i].tolist()]) for i in first[:ROWS].tolist())
    kind = "cluster" if shown.labels is None else "class"
    outlined = " Those of another class are outlined." if shown.labels is not None else ""
    html = (
        f"<p>The first image drawn of each {kind}, then the nearest of the {shown.points:,} images of the maps, "
        f"by the cosine of their embeddings.{outlined}</p>\n<div class=strips>{rows}</div>\n"
    )
    return section("Nearest neighbours", html, "neighbours")


def strip(shown: Shown, query: int, images: Sequence[int]) -> str:
    """A row of pictures; the first is the one that is asked for."""
    other = shown.labels is not None and shown.labels != shown.labels[query]
    pictures = "".join(
        f"<li{' class=other' * bool(np.any(other) and other[i])}>{picture(shown, i, called(shown, i), True)}</li>"  # type: ignore[index]
        for i in images
    )
    name = cluster_name(int(shown.cluster[query])) if shown.labels is None else escape(called(shown, query))
    return f"<div class=strip><div class=name>{name}</div><ul class=pics>{pictures}</ul></div>\n"


def cluster_name(k: int) -> str:
    """With its colour in the maps; clusters count from 0 here."""
    return f'<i class="dot c{k % 10}"></i>cluster {k + 1}'


def clusters(shown: Shown) -> str:
    """What k-means finds where there are no labels."""
    if shown.labels is not None:
        return ""
    rows = ""
    for k, count in enumerate(np.bincount(shown.cluster).tolist()):
        images = np.flatnonzero(shown.cluster == k)[:SEEN].tolist()
        pictures = "".join(f"<li>{picture(shown, i, called(shown, i), True)}</li>" for i in images)
        name = f"<div class=name>{cluster_name(k)}<br><small>{count:,} images</small></div>"
        rows += f"<div class=strip>{name}<ul class=pics>{pictures}</ul></div>\n"
    html = (
        f"<p>k-means with {plural(1 + int(shown.cluster.max()), 'cluster')} on the normalised embeddings, "
        f"the largest first; of each the first {SEEN} images drawn at random.</p>\n<div class=strips>{rows}</div>\n"
    )
    return section("Clusters", html)


# What the network sees


def seen(run: Run) -> str:
    """The views, and the filters of the first layer."""
    return section("What the network sees", "".join(filter(None, (views(run), filters(run)))), "views")


def views(run: Run, images: int = 10, most: int = 8) -> str:
    try:
        tiles = needed(run, VIEWS)[:images, : 1 + most]  # (n, 1 + V, C, h, w)
    except NotDrawn:
        return ""
    if tiles.ndim != 5 or tiles.dtype != np.uint8 or not tiles.size:
        return ""  # `crlf draw` says so
    n, rows, _, h, w = tiles.shape
    text = f"{n} images on top, below each {plural(rows - 1, 'random view')} of it, {h} × {w} pixels. "
    gap = max(1, w // 16)
    return pixels(mosaic(tiles, gap), mosaic(np.zeros_like(tiles), gap), "Views", text + drawn(run.settings))


def filters(run: Run) -> str:
    try:
        tiles = first_filters(run)
    except NotDrawn:
        return ""
    n, _, h, w = tiles.shape
    text = f"{n:,} filters of {h} × {w} weights, each scaled by its largest; gray is no weight."
    tiles, columns = tiles[:256], min(16, n)
    gaps = filter_grid(np.zeros_like(tiles), columns)
    return pixels(filter_grid(tiles, columns), gaps, "First-layer filters", text)


def pixels(image: np.ndarray, gaps: np.ndarray, title: str, text: str) -> str:
    """A picture whose pixels stay pixels: uint8 (h, w, 3); what is white in `gaps`, of the same shape, is left out."""
    h, w, _ = image.shape
    alpha = 255 - gaps[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([image, alpha])).save(buffer, "PNG", optimize=True)
    source = data_uri("image/png", buffer.getvalue())
    return (
        f'<figure class="pixels"><img src="{source}" width="{w}" height="{h}" alt="{escape(title)}: {escape(text)}">'
        f"<figcaption><b>{escape(title)}</b> <span class=soft>{escape(text)}</span></figcaption></figure>\n"
    )
