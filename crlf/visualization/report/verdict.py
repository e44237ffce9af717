"""The head of the report: how good, against what, in how long; and what is not there yet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from crlf.runs.payoff import Payoff, payoff
from crlf.runs.run import ENCODER, FIGURES, THUMBNAILS, Run
from crlf.text import duration, percent
from crlf.visualization.report.appendix import readable
from crlf.visualization.report.bars import bars
from crlf.visualization.report.html import Section, plural, quoted, render, section
from crlf.visualization.report.numbers import ends, number, points


def verdict(run: Run, scores: dict[str, Any]) -> Markup:
    """The sentences, the tiles and the bars that open the report."""
    found, good = payoff(scores), how_good(run, scores)
    by_crops = run.unlabelled and "crops_over_untrained" in scores
    paid = "" if found is None else gain(found, scores) if by_crops else found.sentence
    sentences = [text for text in (good, paid, how_long(scores)) if text]
    return render("verdict.html", sentences=sentences, tiles=tiles(run, scores), bars=bars(scores, searched(run)))


def tiles(run: Run, scores: dict[str, Any]) -> dict[str, str]:
    """The numbers that are asked for first."""
    health = [row for row in run.log() if isinstance(row.get("h_rankme"), float)]
    shares = QUALITY[run.unlabelled]
    found = {name: percent(share) for key, name in shares.items() if (share := number(scores, key)) is not None}
    if seconds := number(scores, "train_seconds"):
        found["training"] = duration(seconds)
    if speed := number(scores, "images_per_second"):
        found["images a second"] = f"{speed:,.0f}"
    if health and run.unlabelled:
        found["dimensions in use (RankMe)"] = f"{health[-1]['h_rankme']:.0f}"
    return found


QUALITY = {
    False: {"linear_accuracy": "linear probe", "knn_accuracy": "kNN", "chance": "chance"},
    True: {"crops_accuracy": "of crops find their image", "untrained_crops_accuracy": "of them when untrained"},
}
"""What the tiles say of labelled images, and of unlabelled ones."""


SEARCHED = 1000  # images at most, as in crlf.evaluation.crops


def searched(run: Run) -> int:
    """Among how many images a crop looks for its own; 0 where it is not known."""
    names = run.ids("test") or run.ids("train") or []
    return min(SEARCHED, len(names))


def how_good(run: Run, scores: dict[str, Any]) -> str:
    """What the embeddings are worth, in a sentence."""
    return how_found(run, scores) if run.unlabelled else how_right(scores)


def how_found(run: Run, scores: dict[str, Any]) -> str:
    """Without labels: how often a crop that training never saw finds its image."""
    share, before, count = number(scores, "crops_accuracy"), number(scores, "untrained_crops_accuracy"), searched(run)
    if share is None:
        why = scores.get("protocol", {}).get("crops", "")
        return f"The quality of the embeddings was {why or 'not measured yet: the images have no labels'}."
    among = f"among {count:,}" if count else "among the others"
    start = (
        f"Given a new random crop of an image, the encoder finds that image {among} in {percent(share)} of the cases."
    )
    untrained = "" if before is None else f" Before training it did so in {percent(before)}."
    return start + untrained + (f" Chance is {percent(1 / count)}." if count else "")


def gain(found: Payoff, scores: dict[str, Any]) -> str:
    """Whether training paid, where the accuracies are told already."""
    more = scores["crops_over_untrained"]
    words = f"{found.what}: {points(more['difference'])} points over the encoder before training"
    words += f" (95 % interval: {ends(more['interval'], points)})."
    return words + ("" if found.paid else f" Try: {found.advice}.")


def how_right(scores: dict[str, Any]) -> str:
    """With labels: what share of the images the probes get right."""
    linear, knn, chance = (number(scores, key) for key in ("linear_accuracy", "knn_accuracy", "chance"))
    if linear is None:
        return "The quality of the embeddings was not measured yet."
    against = f"; always naming the most frequent class gets {percent(chance)}" if chance is not None else ""
    beside = f", a vote of the nearest neighbours {percent(knn)}" if knn is not None else ""
    start = "A linear classifier on the frozen embeddings gets"
    of = "all images right (cross-validated)" if scores.get("cross_validated") else "the test images right"
    return f"{start} {percent(linear)} of {of}{beside}{against}."


def how_long(scores: dict[str, Any]) -> str:
    if not scores.get("train_seconds"):
        source = scores.get("started_from", {}).get("source")
        return f"Nothing was trained: the encoder has the weights of {source} as they came." if source else ""
    epochs = plural(scores.get("epochs"), "epoch")
    views = f" over {scores['views_seen']:,} views" if scores.get("views_seen") else ""
    device = f" on {machine(scores['device'])}" if scores.get("device") else ""
    rest = sum(scores.get(f"{stage}_seconds") or 0 for stage in ("embed", "probe", "draw"))
    after = f" Embedding, probing and drawing took {duration(rest)}." if rest else ""
    how = "with" if scores.get("supervised") else "without"
    teacher = scores.get("teacher", {}).get("source")
    of = f" from the teacher {teacher}" if teacher else ""
    return f"It learned {how} labels{of} in {duration(scores['train_seconds'])}: {epochs}{views}{device}.{after}"


def machine(device: Any) -> str:
    """A device within a sentence: `cpu, 2 threads` becomes `the CPU, 2 threads`."""
    return re.sub("^cpu\\b", "the CPU", str(device))


def missing(run: Run, scores: dict[str, Any], mapped: bool) -> Iterable[tuple[str, str]]:
    """What is not there yet and the command that makes it, in their order."""
    if not run.file(ENCODER).exists():
        yield "the trained encoder", f"crlf pretrain --resume --out {quoted(run)}"
    if not run.file("test_emb.npy").exists():
        yield "embeddings", f"crlf embed {quoted(run)}"
    elif not run.file(THUMBNAILS).exists():  # a run from before they were kept
        yield "pictures of the images", f"crlf embed {quoted(run)}"
    if "linear_accuracy" not in scores and not run.unlabelled:
        yield "scores", f"crlf probe {quoted(run)}"
    if run.unlabelled and "crops_accuracy" not in scores and "crops" not in scores.get("protocol", {}):
        yield "how often a crop finds its image", f"crlf probe {quoted(run)}"
    never = {"confusion_matrix.png"} if run.unlabelled else set()
    if run.log() and not any("h_rankme" in row for row in run.log()):  # a run from before health was logged
        never.add("health.png")
    absent = [name for name in FIGURES if name not in never and not readable(run.file(name))]
    if run.file("test_emb.npy").exists() and not mapped:
        absent.append("maps of these embeddings")
    if absent:
        yield "figures (" + ", ".join(absent) + ")", f"crlf draw {quoted(run)}"


def what_labels_add(run: Run) -> Section:
    """What a run without labels lacks, and what to do with labels: the encoder need not be trained again."""
    weights, out = shlex.quote(str(run.file(ENCODER))), shlex.quote(f"{run.path}_labelled")
    classify = f"crlf finetune {quoted(run)} LABELLED_FOLDER"
    side = number(images if isinstance(images := run.settings.get("images"), dict) else {}, "image_size")
    size = f" --image-size {side}" if side else ""
    encoder = shlex.quote(str(run.settings.get("encoder", "")))
    read = f"crlf run LABELLED_FOLDER --init {weights} --encoder {encoder} --epochs 0{size} --out {out}"
    return section("What labels would add", "labels.html", "labels", classify=classify, read=read)
