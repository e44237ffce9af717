"""`crlf trial`: compares training with not training on the same images."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from crlf.errors import InputError
from crlf.evaluation.crops import IMAGES
from crlf.pipelines.advice import verdict
from crlf.pipelines.contestants import Contestant, Images, Place, contestants, own, shown
from crlf.pipelines.judging import Judged, folds, judge
from crlf.pipelines.sheet import closing, table, time_of, write
from crlf.recipe import Recipe
from crlf.runs.files import read_json, write_json
from crlf.text import duration, each_once, say
from crlf.training.weights.sources import read

MINUTES = 20.0
LEAST = 0.02  # minutes; the shortest training of a contestant
RESULTS, PAGE = "trial.json", "trial.html"


@each_once()
def trial(
    recipe: Recipe,
    *,
    model: tuple[str, ...] = (),
    out: str | Path = "trial_output",
    data_dir: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
) -> dict[str, Any]:
    """Should you train at all? Compare raw pixels, an untrained encoder, trained models as they are, SimCLR from
    scratch, SimCLR from the first model and distillation from it, on the same images. The trial takes about --minutes
    (20 by default), divided equally among the contestants that are trained. Two of them learn from 10 and 30 % of the
    images, to show whether more images would help.

    Args:
        recipe: the settings of the training; --init counts as the first model.
        model: the trained models to compare: timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, or run folders.
        out: the folder for trial.html, trial.json and one run folder per contestant.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.
        device: where to compute: cpu, cuda, mps, or auto for the best available.
        resume: continue the trial in --out.

    Returns:
        The contents of trial.json.

    Raises:
        InputError: a wrong setting, image set or model, or a folder with another trial.
    """
    begun, folder = time.perf_counter(), Path(out)
    models = tuple(dict.fromkeys([*([recipe.start.init] if recipe.start.init else []), *model]))
    asked = {"recipe": dataclasses.replace(recipe, minutes=recipe.minutes or MINUTES).to_dict(), "models": list(models)}
    kept = before(folder, asked, resume)
    for source in models:
        read(source)  # before the images are decoded
    place = Place(recipe, models, folder, data_dir, device)
    images = Images(place)
    train, test = images.of(own(recipe))
    by, everyone = folds(train, test), list(contestants(place, len(train)))
    marks: dict[Contestant, Judged] = {}
    seconds: dict[str, float] = dict(kept["seconds"])
    share, judging = 0.0, 0.0
    for number, one in enumerate(everyone, start=1):
        if one.name in kept["marks"]:
            marks[one] = unpacked(kept["marks"][one.name])
            continue
        if one.trained and not share:
            share = share_of(recipe, everyone, marks, time.perf_counter() - begun, judging)
            say(f"training time for each contestant: {duration(60 * share)}")
        say(f"{number}/{len(everyone)}: {one.name}")
        started = time.perf_counter()
        found = shown(one, place, images, share)
        judged_from = time.perf_counter()
        marks[one] = judge(found, train, test, by)
        judging = max(judging, time.perf_counter() - judged_from + (0 if one.trained else judged_from - started))
        seconds[one.name] = judged_from - started if one.trained else 0.0
        folder.mkdir(parents=True, exist_ok=True)
        kept["marks"][one.name], kept["seconds"] = packed(marks[one]), seconds
        write_json(folder / RESULTS, kept)
    told = verdict(marks)
    about = {
        "data": recipe.data,
        "images": len(train) + (0 if test is train else len(test)),
        "classes": len(train.classes),
        "minutes": recipe.minutes or MINUTES,
        "tested": "each of them tested" if by is not None else f"{len(test):,} others tested",
        "searched": min(IMAGES, len(test) or len(train)),
        "seconds": {one.name: time_of(seconds.get(one.name, 0.0)) for one in everyone},
    }
    write(folder / PAGE, marks, told, about, folder)
    result = {**kept, "advice": told.what, "why": told.why, "best": told.best.name, "train": told.train}
    write_json(folder / RESULTS, result)
    print(table(marks), "", *closing(marks, told, folder / PAGE, folder, recipe.data), sep="\n")
    return result


def share_of(
    recipe: Recipe, everyone: list[Contestant], marks: dict[Contestant, Judged], passed: float, judging: float
) -> float:
    """Minutes for each remaining training: the time left, without the time that scoring takes."""
    left = [one for one in everyone if one.trained and one not in marks]
    rest = 60 * (recipe.minutes or MINUTES) - passed - judging * len(left)
    return max(LEAST, rest / 60 / len(left))


def before(folder: Path, asked: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The results so far of the trial in the folder.

    Raises:
        InputError: the folder holds a trial and `resume` is False, or it holds another trial or other files.
    """
    fresh = {**asked, "marks": {}, "seconds": {}}
    if not (folder / RESULTS).is_file():
        if folder.is_dir() and any(folder.iterdir()) and not resume:
            raise InputError(f"output folder {str(folder)!r} is not empty and holds no trial: choose another --out")
        return fresh
    if not resume:
        raise InputError(f"output folder {str(folder)!r} holds a trial: continue it with --resume, or change --out")
    found = read_json(folder / RESULTS, dict)
    for name, value in json.loads(json.dumps(asked)).items():
        if found.get(name) != value:
            raise InputError(f"the trial in {str(folder)!r} has different settings ({name}): choose another --out")
    return {**fresh, "marks": found.get("marks", {}), "seconds": found.get("seconds", {})}


def packed(judged: Judged) -> dict[str, Any]:
    """The scores as plain values for JSON."""
    right = {k: [None if np.isnan(v) else round(float(v), 4) for v in row] for k, row in judged.right.items()}
    return {"right": right, "measures": judged.measures, "means": {k: judged.mean(k) for k in judged.right}}


def unpacked(values: dict[str, Any]) -> Judged:
    """The inverse of `packed`."""
    right = {k: np.array([np.nan if v is None else v for v in row], dtype=float) for k, row in values["right"].items()}
    return Judged(right, dict(values["measures"]))
