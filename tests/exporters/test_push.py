"""A push is what `export` writes, sent to a hub; here to a small one on this machine that keeps what it gets."""

from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import terminal

import crlf
from crlf import cli
from crlf.exporters import push
from crlf.recipe import Recipe
from crlf.runs.run import Run, claim


class Hub(http.server.ThreadingHTTPServer):
    """The part of the hub's API that an upload uses: make a repository, and a commit.

    It asks for every file within the commit. The hub has large ones sent to its storage first, by a protocol of its
    own that is huggingface_hub's affair, and that no short server can speak.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, bool] = {}  # by name, whether private
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.status = 200


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.tokens.add(self.headers.get("authorization", ""))
        if self.server.status != 200:
            return self.answer({"error": "no"})
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.server.repositories[name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer({"url": f"{self.server.url}/{name}"})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            return self.answer({"commitUrl": f"{self.server.url}/me/name/commit/{'0' * 40}", "commitOid": "0" * 40})
        return self.answer({})

    def do_GET(self) -> None:
        self.answer({"error": "no"})

    def answer(self, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose export is a folder made here: what `export` writes has its own tests."""

    def export(run: Run, *, out: Path, **settings: object) -> Path:
        out.mkdir()
        (out / "README.md").write_text("---\nlicense: mit\n---\n")
        (out / "model.onnx").write_bytes(b"weights" * 1000)
        (out / "export.json").write_text(json.dumps({k: str(v) for k, v in settings.items()}))
        return out

    monkeypatch.setattr(push, "export", export)
    return claim(tmp_path / "run", Recipe().to_dict(), resume=False, overwrite=False)


def test_every_file_of_the_export_arrives(here: Hub, run: Run, capsys):
    url = crlf.push(run, "someone/encoder", format="onnx", license="mit")
    assert url == f"{here.url}/someone/encoder" and f"pushed to {url}" in capsys.readouterr().out
    assert here.repositories == {"someone/encoder": True}, "private unless asked"
    assert here.files["model.onnx"] == b"weights" * 1000
    assert here.files["README.md"] == b"---\nlicense: mit\n---\n"
    assert json.loads(here.files["export.json"]) == {"format": "onnx", "license": "mit", "data_dir": "None"}
    assert set(here.files) == {"README.md", "model.onnx", "export.json"}
    assert here.tokens == {"Bearer hf_test"}


def test_public_is_asked_for(here: Hub, run: Run):
    assert cli.main(["push", str(run.path), "someone/encoder", "--public"]) == 0
    assert here.repositories == {"someone/encoder": False}


def refused(run: Run, *arguments: str) -> str:
    return terminal.refused("push", str(run.path), *arguments)


@pytest.mark.parametrize("name", ["a/b/c", "some one/encoder", "someone/a--b", "", "ü/x", "x" * 97])
def test_a_name_that_no_repository_can_have(name: str, here: Hub, run: Run):
    assert refused(run, name).startswith(f"crlf push: error: name {name!r} is not valid for a repository: ")
    assert here.repositories == {}


def test_without_a_token(here: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "needs a token for the Hugging Face Hub: run `hf auth login`" in refused(run, "someone/encoder")


@pytest.mark.parametrize("status, expected", [(401, "denies access (401)"), (403, "denies access (403)"), (500, "500")])
def test_a_hub_that_refuses(status: int, expected: str, here: Hub, run: Run):
    here.status = status
    line = refused(run, "someone/encoder")
    assert "'someone/encoder' was not pushed: " in line and expected in line and here.files == {}


def test_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch):
    with Hub() as closed:
        pass
    monkeypatch.setenv("HF_ENDPOINT", closed.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    line = refused(run, "someone/encoder")
    assert line == f"crlf push: error: 'someone/encoder' was not pushed: {closed.url} cannot be reached"


def test_without_the_library(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused(run, "a/b").endswith("crlf push needs huggingface_hub: pip install 'crlf[hub]'")


def test_an_export_that_fails_is_not_pushed(here: Hub, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(push, "export", crlf.export)
    assert "'onxx' is not known" in refused(run, "a/b", "--format", "onxx")
    assert here.repositories == {}
