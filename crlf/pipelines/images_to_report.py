"""`crlf run`: pretrain, embed, probe, draw and report in one command, within a time budget."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from crlf import encoders
from crlf.data import SOURCES, load
from crlf.defaults import Unasked
from crlf.embedding.embed import embed
from crlf.errors import InputError
from crlf.evaluation import crops
from crlf.evaluation.probe import probe
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, RECIPE, REPORT, TABLE, Resume, Run, difference, require_place, resumes
from crlf.runtime import distributed
from crlf.runtime.devices import pick_device
from crlf.runtime.interrupts import Interrupted
from crlf.text import duration, each_once, say
from crlf.training.cost import TRIAL, fastest
from crlf.training.prepare import of_weights, starting
from crlf.training.pretrain import pretrain
from crlf.training.state import completed
from crlf.visualization.figures import draw
from crlf.visualization.report import report
from crlf.visualization.summary import summary

MINUTES = 20.0  # default for your own images
FIGURES = 15.0  # seconds for the figures and the report
WHOLE = 1.5  # time per image in a whole set over that in the fastest trial: measured 1.5 to 2 at 224 px
MOST = 0.5  # share of the minutes that may be kept for the stages after training


@each_once()
def run(
    recipe: Recipe,
    *,
    out: str | Path = "simclr_output",
    data_dir: str | Path | None = None,
    device: str = "auto",
    resume: Resume = False,
    overwrite: bool = False,
    track: str = "none",
) -> Run:
    """Train an encoder without labels and evaluate it: pretrain, embed, probe, draw and report. For your own images,
    all stages together take about --minutes (20 if you give neither --minutes nor --epochs). For a named data set,
    --minutes is the time for training alone.

    Args:
        recipe: the settings of the run.
        out: the run folder; all files are written there.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the best available.
        resume: continue the run in --out at the stage where it stopped. `--resume auto` starts one if there is none, so
            that the same command can be given again and again.
        overwrite: replace the run in --out.
        track: also send the log to tensorboard, wandb or mlflow, which store it on this machine.

    Returns:
        The run. Under torchrun, only the first process carries out the stages after training.

    Raises:
        InputError: any error of a stage; the results of the earlier stages stay.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the message says how to continue.
    """
    started, here = time.perf_counter(), Run(out)
    with distributed.together():
        again = distributed.by_first(lambda: resumes(out, resume, overwrite))
        recipe = of_weights(recipe, starting(recipe, here if again else None))
        with interrupted_in("pretrain", here, again):
            distributed.by_first(lambda: require_free(recipe, out, again, overwrite))
            recipe = distributed.by_first(lambda: in_time(recipe, here, again, data_dir, device, started))
            if not distributed.by_first(lambda: again and trained(here, recipe)):
                settings: dict[str, Any] = {"data_dir": data_dir, "device": device, "track": track}
                pretrain(recipe, out=out, resume=again, overwrite=overwrite, **settings)
    if distributed.rank() == 0:  # the stages after training are short and need one process
        show(here, data_dir, device)
    return here


def show(run: Run, data_dir: str | Path | None, device: str) -> None:
    """Run the stages after training, from the first unfinished one on."""
    stages: dict[str, Callable[[], object]] = {
        "embed": lambda: embed(run, data_dir=data_dir, device=device),
        "probe": lambda: probe(run, data_dir=data_dir, device=device),
        "draw": lambda: draw(run),
        "report": lambda: report(run),
    }
    names = list(stages)
    first = next((place for place, name in enumerate(names) if not DONE[name](run)), len(names))
    if first:
        say(f"already done: {', '.join(['pretrain', *names[:first]])}")
    for name in names[first:]:
        with interrupted_in(name, run, resume=True):
            stages[name]()
    summary(run)


# Whether a stage is done


def trained(run: Run, recipe: Recipe) -> bool:
    """Whether the run's training has finished with these settings."""
    whole = "train_seconds" in run.scores and run.file(ENCODER).is_file()  # the scores are written last
    return whole and not difference(recipe.to_dict(), completed(run.settings))


def embedded(run: Run) -> bool:
    files = ("train_emb.npy", "test_emb.npy", TABLE)
    return "embed_seconds" in run.scores and all(run.file(name).is_file() for name in files)


def probed(run: Run) -> bool:
    return "probe_seconds" in run.scores


def drawn(run: Run) -> bool:
    figures = ["loss_curve.png", *["confusion_matrix.png"] * run.file("test_pred.npy").is_file()]
    return "draw_seconds" in run.scores and all(run.file(name).is_file() for name in figures)


def reported(run: Run) -> bool:
    """Whether the report is newer than everything it shows."""
    ages = {name: run.file(name).stat().st_mtime_ns for name in run.held()}
    return REPORT in ages and ages[REPORT] == max(ages.values())


DONE = {"embed": embedded, "probe": probed, "draw": drawn, "report": reported}


# The time


def in_time(recipe: Recipe, run: Run, resume: bool, data_dir: str | Path | None, device: str, started: float) -> Recipe:
    """Set the time budget of a run on your own images, and the part reserved for the stages after training.

    Nothing changes for a named data set, or if the recipe sets its epochs. A resumed run keeps its budget.

    Args:
        started: the start of the command on the clock of `time.perf_counter`.
    """
    by_epochs = not recipe.minutes and not isinstance(recipe.epochs, Unasked)
    if recipe.data in SOURCES or by_epochs:
        return recipe
    if resume:
        before = run.recipe
        recipe = dataclasses.replace(recipe, minutes=recipe.minutes or before.minutes)
        return dataclasses.replace(recipe, reserve=before.reserve) if recipe.minutes == before.minutes else recipe
    minutes = recipe.minutes or MINUTES
    if recipe.reserve:
        return dataclasses.replace(recipe, minutes=minutes)
    needed = after_training(recipe, data_dir, device)
    kept = min(time.perf_counter() - started + needed, 60 * MOST * minutes)
    training = f"{duration(60 * minutes - kept)} to train, the rest to embed, probe and draw"
    more = f" (which may take {duration(needed)})" if needed > kept else ""
    say(f"{duration(60 * minutes)} in all (change it with --minutes): {training}{more}")
    return dataclasses.replace(recipe, minutes=minutes, reserve=round(kept / 60, 3))


def after_training(recipe: Recipe, data_dir: str | Path | None, device: str) -> float:
    """Estimate the seconds that the stages after training take: embedding from a trial, probes as measured on two
    cores."""
    train, test = load(recipe.data, data_dir, recipe.images, recipe.subset)
    images = len(train) + (0 if test is train else len(test))
    _, channels, height, width = train.images.shape
    encoder = encoders.build(recipe.encoder, channels, min(height, width), recipe.embedding.regions)
    length = encoders.trial(encoder, recipe.encoder, channels, height, width)
    place = pick_device(device)
    frozen = encoders.Frozen(encoder, recipe.embedding.mirror).to(place)
    few = torch.rand(min(TRIAL, images), channels, height, width, device=place)
    each = WHOLE * fastest(lambda: frozen(few), place) / len(few)
    if train.labels is None:
        return FIGURES + each * (images + 4 * min(images, crops.IMAGES))
    return FIGURES + 2 * each * images + fitting(len(train), length, len(train.classes), test is train)


def fitting(images: int, length: int, classes: int, cross_validated: bool) -> float:
    """Estimate the seconds that the three linear probes take: on the embeddings, the untrained encoder and the pixels.

    Each L-BFGS iteration computes two products with the images and two with a triangular matrix of their rank. The
    three took 11 s for 416 images of 11 classes, on two idle threads."""
    asked, images = (6000, round(0.64 * images)) if cross_validated else (500, images)  # 4/5 of 4/5 are fitted
    rank = min(images, length)
    return 3 * asked * (3e-4 + 4 * classes * (images * rank / 6e10 + rank**2 / 1e10))


# The place


def require_free(recipe: Recipe, out: str | Path, resume: bool, overwrite: bool) -> None:
    """Raise InputError if `pretrain` would refuse the folder, or if it is inside the folder of images."""
    require_place(out, resume, overwrite)
    images, place = Path(os.path.realpath(recipe.data)), Path(os.path.realpath(out))
    if resume or not images.is_dir() or not place.is_relative_to(images):
        return
    if not any(part.startswith(".") for part in place.relative_to(images).parts):  # hidden folders are skipped
        other = shlex.quote(os.path.relpath(images.parent / place.name))
        raise InputError(f"output folder {str(out)!r} is inside the image folder {recipe.data!r}: try --out {other}")


@contextlib.contextmanager
def interrupted_in(stage: str, run: Run, resume: bool) -> Iterator[None]:
    """Make Ctrl-C say how to continue.

    Args:
        resume: whether the run in the folder can be continued; if False, only if it was created in this block.
    """
    before = age(run)
    try:
        yield
    except KeyboardInterrupt as stop:
        what = str(stop).partition(":")[0] or f"stopped in {stage}"
        how = f"`crlf run --resume --out {shlex.quote(str(run.path))}` continues"
        if not resume and age(run) == before:
            how = "nothing was trained yet; the same command starts again"
        raise Interrupted(getattr(stop, "exit_code", 130) - 128, f"{what}: {how}") from None


def age(run: Run) -> int | None:
    """The start time of the run in the folder, in nanoseconds; None if there is no run."""
    return run.file(RECIPE).stat().st_mtime_ns if run.file(RECIPE).exists() else None
