"""Two hosts on this machine: network namespaces with addresses and names of their own, joined by a cable (veth)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

LINK = "eth0"
ADDRESSES = {"hosta": "10.77.0.1", "hostb": "10.77.0.2"}
START = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'  # in namespaces: this machine keeps its own


def hindrance() -> str:
    """Why there can be no two hosts here; nothing if there can."""
    missing = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not here: apt-get install iproute2"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    trial = f"crlf-trial-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True).returncode:
        return "this kernel makes no network namespaces"
    ip("netns", "del", trial)
    return ""


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Host:
    """A namespace, and what is started in it."""

    def __init__(self, name: str, folder: Path):
        self.name, self.space, self.folder = name, f"crlf-{os.getpid()}-{name}", folder

    def start(self, command: list[str], log: Path, **environment: str) -> subprocess.Popen:
        """Start a command, whose stdout and stderr go to a file."""
        words = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", START, "sh", self.name]
        with log.open("a") as file:
            env = os.environ | environment | {"GLOO_SOCKET_IFNAME": LINK}
            return subprocess.Popen(
                [*words, str(self.folder / "hosts"), *command], env=env, stdout=file, stderr=file, cwd=self.folder
            )

    def link(self, state: str) -> None:
        """Pull the cable out ("down") or put it back ("up")."""
        ip("-n", self.space, "link", "set", LINK, state)

    def slow_link(self, rate: str) -> None:
        """Let the link send no more than a rate such as 20mbit."""
        limit = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
        command = ["ip", "netns", "exec", self.space, "tc", "qdisc", "replace", "dev", LINK, "root", *limit]
        subprocess.run(command, check=True)

    def kill(self) -> None:
        """Kill all its processes."""
        for number in ip("netns", "pids", self.space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), 9)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    lines = [f"{address} {name}" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    a, b = (Host(name, folder) for name in ADDRESSES)
    made = []
    try:
        for host in (a, b):
            ip("netns", "add", host.space)
            made.append(host)
        ends = ["link", "add", LINK, "netns", a.space, "type", "veth", "peer", "name", LINK, "netns", b.space]
        ip(*ends)
        for host in (a, b):
            ip("-n", host.space, "addr", "add", f"{ADDRESSES[host.name]}/24", "dev", LINK)
            ip("-n", host.space, "link", "set", "lo", "up")
            host.link("up")
        yield a, b
    finally:
        for host in made:
            host.kill()
            ip("netns", "del", host.space)
