"""The run folder: the names of its files, and how a folder is claimed for one run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from crlf.errors import InputError, first_line
from crlf.runs.files import check_zip, read_json, write_json
from crlf.runtime.locks import let_go

if TYPE_CHECKING:
    from crlf.recipe import Recipe

RECIPE, SCORES, LOG, CLASSES = "recipe.json", "scores.json", "log.jsonl", "classes.json"
ENCODER, LOSS = "encoder_simclr.pth", "loss.npy"
CHECKPOINT, CHECKPOINT_BEFORE = "checkpoint.pt", "checkpoint-before.pt"
LOCK = ".lock"
EVENTS = "tensorboard/events.out.tfevents.*"  # what --track tensorboard writes
VIEWS, REPORT, TABLE = "views.npy", "report.html", "embeddings.parquet"
THUMBNAILS, MAPS = "thumbnails.npy", "maps.npz"
CLASSIFIER, CLASSIFIER_WEIGHTS = "classifier.json", "classifier.pth"  # in the folder of a classifier
MADE_BY = {
    "train_emb.npy": "embed",
    "test_emb.npy": "embed",
    "train_ids.json": "embed",
    "test_ids.json": "embed",
    "train_lbl.npy": "embed",
    "test_lbl.npy": "embed",
    CLASSES: "embed",
    THUMBNAILS: "embed",
    TABLE: "embed",
    "test_pred.npy": "probe",
    "test_prob.npy": "probe",
    MAPS: "draw",
}  # all other files are made by pretrain
FIGURES = (
    *("loss_curve.png", "health.png", "confusion_matrix.png"),
    *("pca_embedding.png", "tsne_embedding.png", "views.png", "filters.png"),
)
Resume = bool | Literal["auto"]
PDFS = tuple(name.replace(".png", ".pdf") for name in FIGURES)
FILES = (RECIPE, LOG, CHECKPOINT, CHECKPOINT_BEFORE, ENCODER, LOSS, VIEWS, SCORES, *MADE_BY, *FIGURES, *PDFS, REPORT)


class Run:
    """A run, stored in a folder. The stages after training use only its files."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._lock: BaseFileLock | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[Run], tuple[Path]]:
        return Run, (self.path,)  # a lock stays with its process

    def lock(self) -> None:
        """Keep other processes from training into the folder until `release` or the end of this process.

        Raises:
            InputError: another process is training into it.
        """
        self._lock = FileLock(self.file(LOCK), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"another process is training into the output folder {str(self.path)!r}") from error
        except OSError as error:
            raise InputError(f"output folder {str(self.path)!r} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Let other processes train into the folder again."""
        if self._lock is not None:
            let_go(self._lock)

    @classmethod
    def open(cls, run: Run | str | os.PathLike[str]) -> Run:
        """The run in an existing folder.

        Raises:
            InputError: the folder does not exist, or holds no run.
        """
        opened = run if isinstance(run, Run) else cls(run)
        if not opened.path.is_dir():
            raise InputError(f"run folder {str(opened.path)!r} does not exist")
        if not opened.file(RECIPE).is_file():
            raise InputError(f"folder {str(opened.path)!r} holds no run: it has no {RECIPE}")
        return opened

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def recipe(self) -> Recipe:
        """Every setting of the run.

        Raises:
            InputError: recipe.json is damaged, or holds a setting that is unknown or wrong.
        """
        return read_recipe(self.file(RECIPE))

    @property
    def settings(self) -> dict[str, Any]:
        """The plain values in recipe.json, unchecked and without importing torch."""
        return read_json(self.file(RECIPE), dict)

    @property
    def scores(self) -> dict[str, Any]:
        return read_json(self.file(SCORES), dict) if self.file(SCORES).exists() else {}

    @property
    def unlabelled(self) -> bool:
        """Whether the images were embedded and have no labels."""
        return self.file("test_emb.npy").exists() and not self.file("test_lbl.npy").exists()

    @property
    def cross_validated(self) -> bool:
        """Whether all images are tested by cross-validation: the test images are then the training images."""
        return self.scores.get("cross_validated") is True

    def update_scores(self, **values: Any) -> None:
        """Merge values into scores.json. Dicts such as `protocol` are merged one level deep."""
        scores = self.scores
        for key, value in values.items():
            old = scores.get(key)
            scores[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
        write_json(self.file(SCORES), scores)

    def forget_score(self, name: str) -> None:
        """Remove an entry from scores.json."""
        scores = self.scores
        if name in scores:
            write_json(self.file(SCORES), {key: value for key, value in scores.items() if key != name})

    def array(self, name: str) -> np.ndarray:
        """The array in a `.npy` file.

        Raises:
            InputError: the file is missing (names the command that makes it) or damaged.
        """
        path = self.file(name)
        if not path.exists():
            raise InputError(f"{str(path)!r} is missing: `crlf {self._maker(name)}` makes it")
        try:
            with path.open("rb") as file:  # numpy would leave its own handle of a damaged archive open
                array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is an archive")
            return array
        except Exception as error:  # a damaged header raises almost any kind
            raise InputError(f"{str(path)!r} cannot be read as an array: {first_line(error)}") from error

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl, oldest first; a last line that a crash cut short is left out."""
        if not self.file(LOG).exists():
            return []
        rows = []
        for line in self.file(LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
        return rows

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty without labels, or before `crlf embed`."""
        path = self.file(CLASSES)
        return [str(name) for name in read_json(path, list)] if path.exists() else []

    def ids(self, split: str) -> list[str] | None:
        """The name of each image of "train" or "test" (for files the relative path); None before `crlf embed`."""
        path = self.file(f"{split}_ids.json")
        return [str(name) for name in read_json(path, list)] if path.exists() else None

    def tensors(self, name: str) -> Any:
        """Load a file written by `torch.save`, with tensors (on the CPU) and plain values only.

        Raises:
            InputError: the file is missing, damaged, or holds anything else.
        """
        import torch  # imported here, so that commands that only read scores start fast

        path = self.file(name)
        if not path.exists():
            raise InputError(f"{str(path)!r} is missing: `crlf {self._maker(name)}` makes it")
        try:
            data = path.read_bytes()
            check_zip(data)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"{str(path)!r} is damaged or holds more than tensors: {first_line(error)}") from error

    def _maker(self, name: str) -> str:
        command = MADE_BY.get(name, "pretrain")
        return command if command == "pretrain" else f"{command} {self.path}"

    def held(self) -> list[str]:
        """The files of a run that exist."""
        return [name for name in FILES if self.file(name).exists()]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file, such as a run's recipe.json."""
    from crlf.recipe import Recipe  # imported here because it imports torch

    return Recipe.from_dict(read_json(path, dict))


def claim(
    path: str | os.PathLike[str],
    recipe: dict[str, Any],
    resume: bool,
    overwrite: bool,
    space: int = 0,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Run:
    """Claim a folder for a run, lock it, and write its recipe.json.

    Args:
        path: the folder.
        recipe: the settings as plain values.
        resume: continue the run in the folder, which must have the same settings.
        overwrite: remove the run in the folder first; other files stay.
        space: bytes that the run will need.
        complete: adds missing settings to the recipe of an older run.

    Raises:
        InputError: the folder holds a run and neither `resume` nor `overwrite` is set, holds no run to resume or one
            with other settings, cannot be written, or its disk is full. Nothing was changed.
    """
    run = require_place(path, resume, overwrite)
    held = run.held()
    where = f"output folder {str(run.path)!r}"
    if resume:
        for name, here, there in difference(recipe, complete(run.settings)):
            raise InputError(f"{name} is {here!r}, but the run to resume in {str(run.path)!r} has {there!r}")
        run.lock()
        clear(run)
        return run
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(run.path).free
    except OSError as error:
        raise InputError(f"{where} cannot be written: {error.strerror}") from error
    if free < space:
        raise InputError(f"{where} needs {space / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} MB free")
    run.lock()
    try:
        write_json(run.file(RECIPE), recipe)  # fails before anything is removed if the folder cannot be written
    except InputError:
        run.release()
        raise
    for name in held:
        if name != RECIPE:
            run.file(name).unlink()
    for events in run.path.glob(EVENTS):
        events.unlink()
    clear(run)
    return run


def resumes(path: str | os.PathLike[str], resume: Resume, overwrite: bool) -> bool:
    """Whether a command continues the run in a folder: as `resume` says, or with "auto" if the folder holds a run.

    Raises:
        InputError: as `require_place`.
    """
    if resume == "auto" and not overwrite:
        resume = Run(path).file(RECIPE).is_file()
    require_place(path, bool(resume), overwrite)
    return bool(resume)


def require_place(path: str | os.PathLike[str], resume: bool, overwrite: bool) -> Run:
    """Check that a folder can be claimed, without locking or changing it.

    Raises:
        InputError: as `claim`, as far as it does not depend on the settings.
    """
    run = Run(path)
    held, where = run.held(), f"output folder {str(run.path)!r}"
    if resume and overwrite:
        raise InputError("--resume and --overwrite cannot be combined: give one of them")
    if resume and RECIPE not in held:
        raise InputError(f"{where} holds no run to resume")
    if held and not resume and not overwrite:
        raise InputError(f"{where} holds another run: --resume continues it, --overwrite replaces it")
    return run


def clear(run: Run) -> None:
    """Remove temporary files left by a process that was killed."""
    for name in FILES:
        for path in run.path.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings in which two recipes differ: (name, value in a, value in b)."""
    left, right = _flat(a), _flat(b)
    return [(k, left.get(k), right.get(k)) for k in left | right if left.get(k) != right.get(k)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat
