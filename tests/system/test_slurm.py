"""examples/slurm.sbatch on a cluster of one node: a job that is stopped requeues itself and ends as one left alone.

It needs `apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`, and starts the programs itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cluster
import numpy as np
import pytest
from paced import WORDS, program

from crlf.runs.run import CHECKPOINT, ENCODER, LOSS, Run

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "examples" / "slurm.sbatch"
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(cluster.missing()), reason=f"{', '.join(cluster.missing())} not here: {cluster.INSTALL} brings Slurm"
    ),
]
TRAINING = ("shapes", "--epochs", "8", *WORDS)  # 48 steps
PACE = {"quick": "0", "slow": "0.4"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with cluster.cluster(folder, PATH=f"{program(folder)}:{cluster.path()}") as found:
        yield found


def submitted(slurm: cluster.Cluster, out: Path, pace: str) -> str:
    words = ("--parsable", "--cpus-per-task=2", f"--output={out}.log", f"--export=ALL,PACE={PACE[pace]}")
    return slurm.said("sbatch", *words, str(SBATCH), *TRAINING, "--out", str(out))


def finished(slurm: cluster.Cluster, job: str, out: Path) -> Run:
    cluster.until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED", ""), 400, f"job {job} has not ended")
    said = Path(f"{out}.log").read_text()
    assert slurm.told(job, "JobState") == "COMPLETED", said
    return Run.open(out)


def in_training(out: Path) -> None:
    cluster.until(lambda: (out / CHECKPOINT).exists(), 200, f"no checkpoint in {out}")


def same(a: Run, b: Run) -> bool:
    first, second = a.tensors(ENCODER), b.tensors(ENCODER)
    return np.array_equal(a.array(LOSS), b.array(LOSS)) and all(first[name].equal(second[name]) for name in first)


@pytest.fixture(scope="module")
def straight(slurm: cluster.Cluster) -> Run:
    out = slurm.folder / "straight"
    run = finished(slurm, submitted(slurm, out, "quick"), out)
    assert run.scores["processes"] == 2 and len(run.array(LOSS)) == 8
    return run


def test_a_job_that_slurm_warns_of_its_time_limit_requeues_itself(slurm: cluster.Cluster, straight: Run):
    """SIGUSR1 comes as `--signal=B:USR1` sends it, to the batch script alone."""
    out = slurm.folder / "warned"
    job = submitted(slurm, out, "slow")
    in_training(out)
    slurm.said("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: slurm.told(job, "Restarts") == "1", 100, "the job was not requeued")
    assert not (out / ENCODER).exists()
    run = finished(slurm, job, out)
    assert same(run, straight)
    said = Path(f"{out}.log").read_text()
    assert "stopped after step" in said and said.count("epoch 1/8 ") == 1


def test_a_job_that_another_preempts_requeues_itself(slurm: cluster.Cluster, straight: Run):
    out = slurm.folder / "preempted"
    job = submitted(slurm, out, "slow")
    in_training(out)
    sooner = slurm.said("sbatch", "--parsable", "--partition=high", "--cpus-per-task=2", "--wrap=sleep 5")
    cluster.until(lambda: slurm.state(sooner) in ("RUNNING", "COMPLETED"), 100, "the other job does not run")
    assert not (out / ENCODER).exists()
    cluster.until(lambda: slurm.told(job, "Restarts") == "1" and slurm.state(job) == "RUNNING", 200, "no second start")
    assert slurm.told(job, "PreemptTime") == "None"  # else a later failure would be taken for a preemption
    assert same(finished(slurm, job, out), straight)
    assert "stopped after step" in Path(f"{out}.log").read_text()


def test_a_cancelled_job_stays_ended(slurm: cluster.Cluster):
    out = slurm.folder / "cancelled"
    job = submitted(slurm, out, "slow")
    in_training(out)
    slurm.said("scancel", job)
    cluster.until(lambda: slurm.state(job) == "CANCELLED", 100, "the job has not ended")
    assert slurm.told(job, "Restarts") == "0" and slurm.told(job, "Requeue") == "1"
    assert "stopped after step" in Path(f"{out}.log").read_text()  # saved, to be resumed by hand
