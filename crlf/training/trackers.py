"""Sends the rows of log.jsonl to TensorBoard, Weights & Biases or MLflow as well.

Nothing leaves the machine unless the tracker's own variables ask for it: WANDB_MODE=online, MLFLOW_TRACKING_URI. The
trackers get the numbers of the log, so training gives the same bits with and without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from crlf.errors import InputError, first_line, require, unknown
from crlf.runs.run import Run
from crlf.runtime import distributed

Write = Callable[[dict[str, Any]], None]  # takes a row of the log
PROJECT = "crlf"


@contextlib.contextmanager
def tracked(tracker: str, run: Run, done: int) -> Iterator[Write]:
    """A function that sends a row of the log to a tracker.

    Args:
        tracker: one of `TRACKERS`.
        run: the run; its recipe is sent along, and the tracker writes into its folder.
        done: steps already done; the tracker replaces later ones that it holds, if it can.

    Raises:
        InputError: the tracker is not installed, or cannot start.
    """
    require_tracker(tracker)
    tracker = "none" if distributed.rank() else tracker  # only the first process reports
    with contextlib.ExitStack() as stack:
        try:
            write = stack.enter_context(TRACKERS[tracker](run, done))
        except Exception as error:  # each library has its own kinds
            raise InputError(f"--track {tracker} cannot start: {first_line(error)}") from error
        yield write


def require_tracker(tracker: str) -> None:
    """Raise InputError if the tracker is unknown or its library is not installed."""
    if tracker not in TRACKERS:
        raise unknown("tracker", tracker, TRACKERS)
    if tracker != "none":
        require(f"--track {tracker}", tracker, tracker)


@contextlib.contextmanager
def none(run: Run, done: int) -> Iterator[Write]:
    """The log alone."""
    yield lambda row: None


@contextlib.contextmanager
def tensorboard(run: Run, done: int) -> Iterator[Write]:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and an extra

    with SummaryWriter(str(run.file("tensorboard")), purge_step=done + 1) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in numbers(row).items():
                writer.add_scalar(name, value, row["step"])
            writer.flush()  # TensorBoard reads the file during the run

        yield write


@contextlib.contextmanager
def wandb(run: Run, done: int) -> Iterator[Write]:
    """A run of Weights & Biases in RUN/wandb, offline: `wandb sync RUN/wandb/offline-run-*` uploads it."""
    import wandb as library

    mode: Any = os.environ.get("WANDB_MODE", "offline")
    tracked_run = library.init(
        project=PROJECT, name=run.path.absolute().name, id=identity(run), resume="allow", dir=str(run.path),
        config=run.settings, mode=mode,
    )  # fmt: skip
    try:
        yield lambda row: tracked_run.log(numbers(row), step=row["step"])
    finally:
        tracked_run.finish()


@contextlib.contextmanager
def mlflow(run: Run, done: int) -> Iterator[Write]:
    """A run of MLflow in RUN/mlflow/mlflow.db: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db`."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    place = run.file("mlflow").absolute()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        place.mkdir(exist_ok=True)
        uri = f"sqlite:///{place / 'mlflow.db'}"  # MLflow no longer writes to plain folders
    client = MlflowClient(tracking_uri=uri)
    id, is_new = mlflow_run(client, run)
    if is_new:
        client.log_batch(id, params=[Param(name, str(value)) for name, value in flat(run.settings).items()])

    def write(row: dict[str, Any]) -> None:
        now = int(1000 * row["seconds"])  # ms of training, the time axis in MLflow
        client.log_batch(id, metrics=[Metric(k, v, now, row["step"]) for k, v in numbers(row).items()])

    status = "FAILED"
    try:
        yield write
        status = "FINISHED"
    finally:
        client.set_terminated(id, status)


def mlflow_run(client: Any, run: Run) -> tuple[str, bool]:
    """The id of the MLflow run, and whether it is new; a resumed run continues the old one."""
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    tag = identity(run)
    for old in client.search_runs([experiment], f"tags.crlf = '{tag}'", max_results=1):
        client.update_run(old.info.run_id, "RUNNING")
        return old.info.run_id, False
    made = client.create_run(experiment, run_name=run.path.absolute().name, tags={"crlf": tag})
    return made.info.run_id, True


def identity(run: Run) -> str:
    """An id for the run in a tracker, made from its folder and settings, so that a resumed run keeps it."""
    text = f"{run.path.absolute()} {sorted(flat(run.settings).items())}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Settings as a flat dict with names such as optim.lr."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numbers in a row of the log, without the step."""
    return {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}


TRACKERS: dict[str, Callable[[Run, int], contextlib.AbstractContextManager[Write]]] = {
    "none": none,
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
