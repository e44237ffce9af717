"""SimCLR in one command: learn from images without labels, then show what was learned."""

from __future__ import annotations

import sys
from pathlib import Path

import crlf
from crlf.cli import command_line


def simclr(
    recipe: crlf.Recipe,
    *,
    out: str | Path = "simclr_output",
    data_dir: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    track: str = "none",
) -> None:
    """Learn from images without labels, then show what was learned.

    Args:
        recipe: every setting of the run.
        out: the run folder, where everything is written.
        data_dir: where the data set lies; by default the cache, ~/.cache/crlf.
        device: cpu, cuda, mps, or auto for the best that is there.
        resume: continue the run in the folder from its checkpoint.
        overwrite: replace the run in the folder.
        track: what the log goes to as well: tensorboard, wandb or mlflow, on this machine.
    """
    run = crlf.pretrain(
        recipe, out=out, data_dir=data_dir, device=device, resume=resume, overwrite=overwrite, track=track
    )
    from crlf.runtime import distributed  # here, so that --help does not wait for torch

    if distributed.rank() > 0:
        return  # torchrun's other processes have trained along; what is left is little
    crlf.embed(run, data_dir=data_dir, device=device)
    crlf.probe(run, data_dir=data_dir, device=device)
    crlf.draw(run)
    crlf.report(run)
    crlf.summary(run)


if __name__ == "__main__":
    sys.exit(command_line(simclr))
