"""The last lines on the terminal: the scores of a run, and the paths of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crlf.runs.payoff import payoff
from crlf.runs.run import ENCODER, REPORT, Run
from crlf.text import duration
from crlf.visualization.closing import closing


def summary(run: Run | str | Path) -> None:
    """Print a short table of a run's scores and files; of a whole run also what that means, and what to do next."""
    run = Run.open(run)
    found = payoff(run.scores)
    print(table(run.scores, run))
    if whole(run):
        print(f"\n{closing(run)}")
    elif found:
        print(f"\n{found.sentence}")


def whole(run: Run) -> bool:
    """Whether a run is trained, embedded and measured."""
    return {"train_seconds", "embed_seconds", "probe_seconds"} <= run.scores.keys() and run.file(REPORT).exists()


def untrained(scores: dict[str, Any]) -> str:
    """The reason why there was no training."""
    source = scores.get("started_from", {}).get("source")
    return f"nothing was trained: the weights of {source}" if source and "train_seconds" in scores else "not yet"


def table(scores: dict[str, Any], run: Run) -> str:
    def percent(name: str) -> str:
        if name in scores:
            limits = scores.get(name.replace("_accuracy", "_interval"))
            between = f" ({100 * limits[0]:.1f} to {100 * limits[1]:.1f} %)" if isinstance(limits, list) else ""
            return f"{100 * scores[name]:.1f} %{between}"
        return "not measured: the images have no labels" if run.unlabelled else "not measured: run `crlf probe`"

    stages = [scores.get(f"{stage}_seconds") for stage in ("train", "embed", "probe", "draw")]
    training = stages[0]
    speed = f"{scores.get('images_per_second', 0):,.0f} images/s, {scores.get('pflop', 0):.3g} PFLOP"
    quality = [("linear probe", "linear_accuracy"), ("kNN (k = 10)", "knn_accuracy"), ("chance", "chance")]
    if run.unlabelled and "crops_accuracy" in scores:
        quality = [("image by crop", "crops_accuracy")]
    tested = [("tested", f"all {len(run.ids('test') or []):,} images, cross-validated")] if run.cross_validated else []
    rows = [
        *((name, percent(key)) for name, key in quality),
        *tested,
        ("trained in", f"{duration(training)} ({speed})" if training else untrained(scores)),
        ("all stages", duration(sum(s for s in stages if s))),
        ("encoder", str(run.file(ENCODER))),
        ("embeddings", str(run.file("train_emb.npy")) + ", " + str(run.file("test_emb.npy"))),
        ("report", str(run.file(REPORT))),
    ]
    return "\n".join(f"{name:<14}{value}" for name, value in rows)
