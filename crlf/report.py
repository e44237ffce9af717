"""The report of a run: one HTML file that opens offline, on a phone or a desk, by day or by night.

It loads nothing: figures are inlined, there is no script, and its Content-Security-Policy forbids both. Whatever comes
from a file is escaped.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from crlf import runs
from crlf.runs import Run
from crlf.words import duration, percent, size

HOLDS = {
    runs.RECIPE: "every setting; the run can be repeated from it alone",
    runs.LOG: "one JSON object for each logged step",
    runs.CHECKPOINT: "what --resume needs: weights, optimizer state, place",
    runs.ENCODER: "the trained encoder's state dict, CPU tensors",
    runs.LOSS: "the mean loss of each epoch, float64",
    runs.VIEWS: "a few images and views of them, uint8 (n, 1 + V, C, h, w)",
    runs.SCORES: "every measured number, its protocol beside it",
    "train_emb.npy": "embeddings of the training images, float32 (N, D); row i is image i",
    "test_emb.npy": "embeddings of the test images, float32 (N, D); row i is image i",
    "train_ids.json": "the name of each training image, in the order of the rows",
    "test_ids.json": "the name of each test image, in the order of the rows",
    "train_lbl.npy": "labels of the training images, int64 (N,)",
    "test_lbl.npy": "labels of the test images, int64 (N,)",
    runs.CLASSES: "the names of the classes",
    runs.TABLE: "name, split, label, class and embedding of every image, one table",
    "test_pred.npy": "what the linear probe predicts for the test images, int64 (N,)",
    "loss_curve.png": "the loss over training",
    "health.png": "rank, alignment, uniformity and spread of the features over training",
    "confusion_matrix.png": "what the linear probe took each class for",
    "pca_embedding.png": "test embeddings along their two directions of greatest variance",
    "tsne_embedding.png": "test embeddings in a plane that keeps neighbours",
    "views.png": "views as the network sees them",
    runs.REPORT: "this page",
}
NAMES = {
    "linear_accuracy": "Linear probe",
    "knn_accuracy": "Nearest neighbours (kNN)",
    "chance": "Chance: always the most frequent class",
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --line: #d8dee4; --ink: #1b1f24; --soft: #57606a;
  --good: #3d49c2; --chance: #8c959f; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --card: #171c23; --line: #30363d; --ink: #e6edf3;
  --soft: #9aa4af; --good: #8f9aff; --chance: #6e7781; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 0.7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.3rem; } p { margin: 0.5rem 0; max-width: 46rem; }
.soft { color: var(--soft); } .lead { font-size: 1.15rem; margin-top: 1rem; }
code, pre { font: 0.9em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem 0.9rem;
  margin: 0.5rem 0; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.9rem 0.35rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; } th { width: 15rem; } .settings th { width: 55%; } td .soft { font-size: 0.88rem; }
.bars { display: grid; grid-template-columns: minmax(8rem, 17rem) 1fr; gap: 0.5rem 1rem; align-items: center;
  max-width: 46rem; margin: 1.2rem 0; }
.track { display: flex; align-items: center; gap: 0.6rem; }
.bar { height: 1.3rem; border-radius: 3px; background: var(--good); min-width: 2px; }
.chance { background: var(--chance); }
.track b { white-space: nowrap; font-variant-numeric: tabular-nums; }
.missing { border-left: 4px solid #e77900; background: var(--card); padding: 0.5rem 1rem; margin: 1.2rem 0; }
figure { margin: 1.2rem 0 0; } figure img { display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; } figcaption { display: none; }
.settings { columns: 20rem; column-gap: 2.5rem; } .settings section { break-inside: avoid; padding-bottom: 1rem; }
.settings h3 { margin-top: 0; }
@media (max-width: 46rem) { .bars { display: block; } .track { margin-bottom: 0.7rem; }
  figcaption { display: block; color: var(--soft); font-size: 0.88rem; margin-top: 0.4rem; }
  th { width: 40%; } }
"""


def report(run: Run | str | Path) -> Path:
    """Write report.html: how good, in how long, the figures, the settings, the files.

    Stages that were not run yet are named with the command that runs them.

    Returns:
        The file that was written.
    """
    run = Run.open(run)
    path = run.file(runs.REPORT)
    runs.write_bytes(path, page(run).encode("utf-8", "xmlcharrefreplace"))
    return path


def page(run: Run) -> str:
    """The report as HTML."""
    recipe, scores = run.recipe, run.scores
    title = f"{recipe.get('method', '?')} on {recipe.get('data', '?')}: what the encoder learned"
    shown = [drawing(run, name) for name in runs.FIGURES if readable(run.file(name))]
    body = [
        f"<h1>{escape(title)}</h1>\n<p class=soft>Run folder <code>{escape(str(run.path))}</code></p>",
        verdict(run, scores),
        todo(run, scores),
        section("Figures", "".join(shown)),
        section("Numbers", measured(scores)),
        section("Settings", settings(recipe) + repeat(run)),
        section("Files", files(run)),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{"".join(body)}
</body>
</html>
"""


def section(title: str, html: str) -> str:
    return f"\n<section>\n<h2>{escape(title)}</h2>\n{html}\n</section>" if html else ""


# How good, against what, in how long


def verdict(run: Run, scores: dict[str, Any]) -> str:
    """The sentence and the bars that open the report."""
    sentences = [how_good(scores, run.unlabelled), how_long(scores)]
    lines = "".join(f"<p class=lead>{escape(text)}</p>\n" for text in sentences if text)
    return f"\n<section>\n{lines}{bars(scores)}</section>"


def how_good(scores: dict[str, Any], without_labels: bool) -> str:
    linear, knn, chance = (scores.get(key) for key in ("linear_accuracy", "knn_accuracy", "chance"))
    if linear is None:
        reason = ": the data set has no labels" if without_labels else " yet"
        return f"How good the embeddings are was not measured{reason}."
    against = f"; always naming the most frequent class gets {percent(chance)}" if chance is not None else ""
    beside = f", a vote of the nearest neighbours {percent(knn)}" if knn is not None else ""
    start = "A linear classifier on the frozen embeddings gets"
    return f"{start} {percent(linear)} of the test images right{beside}{against}."


def how_long(scores: dict[str, Any]) -> str:
    if not scores.get("train_seconds"):
        return ""
    epochs = plural(scores.get("epochs"), "epoch")
    views = f" over {scores['views_seen']:,} views" if scores.get("views_seen") else ""
    device = f" on {scores['device']}" if scores.get("device") else ""
    rest = sum(scores.get(f"{stage}_seconds") or 0 for stage in ("embed", "probe", "draw"))
    after = f" Embedding, probing and drawing took {duration(rest)}." if rest else ""
    how = "with" if scores.get("supervised") else "without"
    return f"It learned {how} labels in {duration(scores['train_seconds'])}: {epochs}{views}{device}.{after}"


def bars(scores: dict[str, Any]) -> str:
    """A bar for each accuracy and, last, for chance."""
    found = {key: value for key, value in scores.items() if key.endswith("_accuracy") and value is not None}
    if scores.get("chance") is not None:
        found["chance"] = scores["chance"]
    rows = (
        f"<div>{escape(called(key))}</div><div class=track>"
        f'<div class="bar {"chance" if key == "chance" else ""}" style="width:{80 * value:.1f}%"></div>'
        f"<b>{percent(value)}</b></div>\n"
        for key, value in found.items()
    )
    return f"<div class=bars>\n{''.join(rows)}</div>\n" if found else ""


# What is not there yet


def todo(run: Run, scores: dict[str, Any]) -> str:
    """What is missing, and the commands that make it, in their order."""
    steps = [*missing(run, scores)]
    if not steps:
        return ""
    commands = "\n".join(command for _, command in [*steps, ("", f"crlf report {quoted(run)}")])
    what = "; ".join(text for text, _ in steps)
    return f"\n<div class=missing>\n<p>Not there yet: {escape(what)}. To make it:</p>\n{shell(commands)}</div>"


def missing(run: Run, scores: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if not run.file(runs.ENCODER).exists():
        yield "the trained encoder", f"crlf pretrain --resume --out {quoted(run)}"
    if not run.file("test_emb.npy").exists():
        yield "embeddings", f"crlf embed {quoted(run)}"
    if "linear_accuracy" not in scores and not run.unlabelled:
        yield "scores", f"crlf probe {quoted(run)}"
    never = {"confusion_matrix.png"} if run.unlabelled else set()
    if run.log() and not any("h_rankme" in row for row in run.log()):  # a run from before health was logged
        never.add("health.png")
    absent = [name for name in runs.FIGURES if name not in never and not readable(run.file(name))]
    if absent:
        yield "figures (" + ", ".join(absent) + ")", f"crlf draw {quoted(run)}"


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format == "PNG"
    except (OSError, UnidentifiedImageError):
        return False


# The rest


def drawing(run: Run, name: str) -> str:
    """A figure with the picture in it; what the PNG says about itself is the text for those who cannot see it."""
    data = run.file(name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        text = escape(str(image.info.get("Description") or HOLDS.get(name, name)))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    picture = f'<img src="{source}" width="{width}" height="{height}" alt="{text}">'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>\n"


def measured(scores: dict[str, Any]) -> str:
    """Every number of scores.json, and how it was measured."""
    protocol = scores.get("protocol") if isinstance(scores.get("protocol"), dict) else {}
    rows = []
    for key, value in scores.items():
        if key != "protocol":
            fraction = key == "chance" or key.endswith("_accuracy")
            text = percent(value) if fraction and value is not None else plain(value)
            rows.append((called(key), text, plain((protocol or {}).get(key.removesuffix("_accuracy"), ""))))
    return table(rows)


def settings(recipe: dict[str, Any]) -> str:
    """recipe.json: the run's own settings, then section by section."""
    sections = {"run": {key: value for key, value in recipe.items() if not isinstance(value, dict)}}
    sections |= {key: value for key, value in recipe.items() if isinstance(value, dict)}
    parts = (
        f"<section><h3>{escape(name)}</h3>\n{table((key, plain(value)) for key, value in values.items())}</section>\n"
        for name, values in sections.items()
    )
    return f"<div class=settings>\n{''.join(parts)}</div>\n"


def repeat(run: Run) -> str:
    out = shlex.quote(f"{run.path}_again")
    command = f"python simclr_train.py --recipe {shlex.quote(str(run.file(runs.RECIPE)))} --out {out}"
    return f"<p>To repeat this run:</p>\n{shell(command)}"


def files(run: Run) -> str:
    held = [name for name in run.held() if name != runs.REPORT]
    sizes = {name: size(run.file(name).stat().st_size) for name in held}
    return table((name, HOLDS.get(name, ""), text) for name, text in sizes.items())


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of a name, a text, and perhaps a remark."""
    lines = ""
    for name, text, *remarks in rows:
        below = "".join(f"<div class=soft>{escape(remark)}</div>" for remark in remarks if remark)
        lines += f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}{below}</td></tr>\n"
    return f"<table>\n{lines}</table>\n" if lines else ""


# Words


def called(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def plain(value: Any) -> str:
    """A value of a JSON file as a reader writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return str(value)


def plural(count: Any, noun: str) -> str:
    return f"{plain(count)} {noun}{'' if count == 1 else 's'}"


def quoted(run: Run) -> str:
    return shlex.quote(str(run.path))


def shell(commands: str) -> str:
    return f"<pre><code>{escape(commands)}</code></pre>\n"
