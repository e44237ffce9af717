"""A Slurm cluster of one node and two cores on this machine, in a folder of its own, as the user who runs the test."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
SETTINGS = """
ClusterName=crlf
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes={host} State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=path())]


def path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"after {seconds:.0f} s: {what}"
        time.sleep(0.5)


class Cluster:
    """The commands of a running cluster."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def said(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Such as PENDING; nothing when the job has ended."""
        return self.said("squeue", "--noheader", "--states=all", f"--job={job}", "--format=%T")

    def told(self, job: str, name: str) -> str:
        """A line of `scontrol show job`."""
        text = self.said("scontrol", "show", "job", job)
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{name}="))


@contextlib.contextmanager
def cluster(folder: Path, **environment: str) -> Iterator[Cluster]:
    """A cluster whose jobs have these environment variables."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    settings = folder / "slurm.conf"
    names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": folder}
    settings.write_text(SETTINGS.format(**names, ports=free_ports(2)))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    folder.chmod(0o755)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    daemons = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-f", str(settings)],
        ["slurmd", "-D", "-f", str(settings), "-N", names["host"]],
    )
    env = os.environ | {"PATH": path(), "SLURM_CONF": str(settings)} | environment
    running = []
    try:
        with (folder / "daemons.log").open("w") as log:
            for daemon in daemons:
                running.append(subprocess.Popen(daemon, env=env, stdout=log, stderr=log))
                time.sleep(1)
        found = Cluster(folder, env)
        until(lambda: "idle" in found.said("sinfo", "--noheader", "--format=%t"), 60, "the node is not idle")
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(timeout=60)
