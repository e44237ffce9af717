"""The head of the report: how good, against what, in how long; and what is not there yet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from crlf.runs.payoff import payoff
from crlf.runs.run import ENCODER, FIGURES, THUMBNAILS, Run
from crlf.text import duration, percent
from crlf.visualization.report.appendix import readable
from crlf.visualization.report.html import Section, called, plural, quoted, render, section


def verdict(run: Run, scores: dict[str, Any]) -> Markup:
    """The sentences, the tiles and the bars that open the report."""
    found = payoff(scores)
    good = "" if found and run.unlabelled else how_good(scores, run.unlabelled)
    sentences = [found.sentence if found else "", good, how_long(scores)]
    return render(
        "verdict.html", sentences=[text for text in sentences if text], tiles=tiles(run, scores), bars=bars(scores)
    )


def tiles(run: Run, scores: dict[str, Any]) -> dict[str, str]:
    """The numbers that are asked for first."""
    health = [row for row in run.log() if isinstance(row.get("h_rankme"), float)]
    found = {
        "linear probe": percent(scores["linear_accuracy"]) if scores.get("linear_accuracy") is not None else "",
        "kNN": percent(scores["knn_accuracy"]) if scores.get("knn_accuracy") is not None else "",
        "chance": percent(scores["chance"]) if scores.get("chance") is not None else "",
        "RankMe of the embeddings": f"{health[-1]['h_rankme']:.0f}" if health and run.unlabelled else "",
        "training": duration(scores["train_seconds"]) if scores.get("train_seconds") else "",
        "images a second": f"{scores['images_per_second']:,.0f}" if scores.get("images_per_second") else "",
    }
    return {name: text for name, text in found.items() if text}


def how_good(scores: dict[str, Any], without_labels: bool) -> str:
    linear, knn, chance = (scores.get(key) for key in ("linear_accuracy", "knn_accuracy", "chance"))
    if linear is None:
        reason = ": the data set has no labels" if without_labels else " yet"
        return f"How good the embeddings are was not measured{reason}."
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
    device = f" on {scores['device']}" if scores.get("device") else ""
    rest = sum(scores.get(f"{stage}_seconds") or 0 for stage in ("embed", "probe", "draw"))
    after = f" Embedding, probing and drawing took {duration(rest)}." if rest else ""
    how = "with" if scores.get("supervised") else "without"
    teacher = scores.get("teacher", {}).get("source")
    of = f" from the teacher {teacher}" if teacher else ""
    return f"It learned {how} labels{of} in {duration(scores['train_seconds'])}: {epochs}{views}{device}.{after}"


def bars(scores: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """The name and the share of each accuracy and, last, of chance; and whether it is chance."""
    found = {key: value for key, value in scores.items() if key.endswith("_accuracy") and value is not None}
    if scores.get("chance") is not None:
        found["chance"] = scores["chance"]
    return [(called(key), value, key == "chance") for key, value in found.items()]


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
    never = {"confusion_matrix.png"} if run.unlabelled else set()
    if run.log() and not any("h_rankme" in row for row in run.log()):  # a run from before health was logged
        never.add("health.png")
    absent = [name for name in FIGURES if name not in never and not readable(run.file(name))]
    if run.file("test_emb.npy").exists() and not mapped:
        absent.append("maps of these embeddings")
    if absent:
        yield "figures (" + ", ".join(absent) + ")", f"crlf draw {quoted(run)}"


def what_labels_add() -> Section:
    """What a run without labels lacks, and how to give it labels."""
    return section("What labels would add", "labels.html", "labels")
