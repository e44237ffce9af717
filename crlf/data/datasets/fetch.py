"""Downloads a file over HTTPS, with its certificate checked, or through npm.

Why not torchvision's `download_url`: it waits for a silent server for good, and asks over http what https did not give
(a test shows both); nor does it tell a full disk from a broken network. Its `extract_archive` unpacks to the disk
whatever an archive holds, and its data sets unpickle what they find there; here members are read into memory, and no
pickle calls anything. What is the same, addresses and checksums, is compared with torchvision's by a test.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from crlf.errors import InputError

SILENCE = 30.0  # seconds that a server may send nothing
PATIENCE = 1800.0  # seconds that npm may take
BLOCK = 1 << 18  # bytes


def progress(total: int | None) -> tqdm:
    """A progress bar of bytes with rate and time left; nothing if stderr is not a terminal."""
    return tqdm(total=total, unit="B", unit_scale=True, disable=None, dynamic_ncols=True, leave=False)


def download(url: str, path: Path, md5: str) -> Path:
    """Save the file at an address.

    Args:
        url: over https the server's certificate is always checked.
        path: the file to write.
        md5: of the whole file, as hexadecimal digits.

    Returns:
        `path`.

    Raises:
        InputError: the address does not answer, breaks off, or holds another file. Says only why.
        OSError: the file cannot be written.
    """
    with connect(url) as response, path.open("wb") as file, progress(response.length) as bar:
        total, digest = response.length, hashlib.md5(usedforsecurity=False)
        for block in blocks(response):
            digest.update(block)
            file.write(block)
            bar.update(len(block))
        got = file.tell()
    if total is not None and got < total:
        raise InputError(f"it stopped after {got / 1e6:.1f} of {total / 1e6:.1f} MB")
    if digest.hexdigest() != md5:
        raise InputError(f"it is another file ({got / 1e6:.1f} MB): its MD5 is {digest.hexdigest()}, not {md5}")
    return path


def connect(url: str) -> http.client.HTTPResponse:
    """The open response of an address. Environment variables such as HTTPS_PROXY and SSL_CERT_FILE are respected."""
    try:
        response = urllib.request.urlopen(url, timeout=SILENCE, context=ssl.create_default_context())
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise InputError(reason(error)) from error
    if url.startswith("https:") and not response.geturl().startswith("https:"):
        response.close()
        raise InputError(f"it leads to {response.geturl()}, which is not https")
    return response


def blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data from a server, piece by piece; its errors are distinguished from those of the disk."""
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"it stopped: {reason(error)}") from error
        if not block:
            return
        yield block


def reason(error: BaseException) -> str:
    """The reason of a failure, in one line."""
    if type(error) is urllib.error.URLError and isinstance(error.reason, BaseException):
        error = error.reason
    return " ".join(str(error).split()) or type(error).__name__


def npm_pack(package: str, folder: Path, sha1: str, size: int) -> Path:
    """Let npm download the tarball of a package, from the registry or mirror that it is configured for.

    Args:
        package: name@version.
        folder: an empty folder to work in.
        sha1: of the tarball, as hexadecimal digits.
        size: of the tarball, in bytes; the bar needs it.

    Returns:
        The tarball's path, inside `folder`.

    Raises:
        InputError: npm is missing, fails, takes too long, or brings another file. Says only why.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is not on the PATH")
    # npm's cache is inside the folder: its growth shows the progress, and the user's own cache does not change.
    command = [
        npm,
        "pack",
        package,
        "--ignore-scripts",
        "--cache",
        str(folder / "npm"),
        "--fetch-retry-maxtimeout",
        "10000",
    ]
    log = folder / "npm.log"
    with log.open("wb") as stderr:
        code = watched(command, folder, stderr, size)
    packed = list(folder.glob("*.tgz"))
    if code != 0 or len(packed) != 1:
        raise InputError(f"exit code {code}: {complaint(log.read_text(encoding='utf-8', errors='replace'))}")
    found = hashlib.sha1(packed[0].read_bytes(), usedforsecurity=False).hexdigest()
    if found != sha1:
        raise InputError(f"it is another file: its SHA-1 is {found}, not {sha1}")
    return packed[0]


def watched(command: list[str], folder: Path, stderr: IO[bytes], size: int) -> int:
    """Run a command in a folder that grows by about `size` bytes, with a progress bar. Returns the exit code."""
    deadline = time.monotonic() + PATIENCE
    try:
        child = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
    except OSError as error:
        raise InputError(f"{command[0]!r} cannot be run: {error.strerror}") from error
    with child, progress(size) as bar:
        try:
            while child.poll() is None:
                if time.monotonic() > deadline:
                    raise InputError(f"it took longer than {PATIENCE:.0f} s")
                bar.update(min(size, grown(folder)) - bar.n)
                time.sleep(0.1)
        except BaseException:
            child.kill()
            raise
    return child.returncode


def grown(folder: Path) -> int:
    """The bytes in a folder; files may disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def complaint(stderr: str) -> str:
    """The line of npm's output that gives the reason of a failure, without codes and advice."""
    said = re.findall(r"^npm (?:error|ERR!) (?!code |syscall |errno |path |dest |A complete log)(.+)$", stderr, re.M)
    return (said or stderr.split("\n")[-2:-1] or ["it said nothing"])[0].strip()
