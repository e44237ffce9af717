"""Weights from a hub: a small one on this machine, that speaks the protocol as the real client and timm use it."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from terminal import PIPES, PROGRAM, Said, there
from tiny_images import encoded, pixels

import crlf
from crlf.runs.run import ENCODER

pytestmark = pytest.mark.long  # each in processes of its own

MODEL, GATED = "someone/tiny", "someone/gated"
COMMIT = "1234567890" * 4


class Hub(http.server.ThreadingHTTPServer):
    """It serves the files of one model, refuses another that is gated, and knows no more."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.folder = folder
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        """Of /OWNER/NAME/resolve/REVISION/FILE: the commit, a tag of the content, its size, and it."""
        self.server.asked.append(f"{self.command} {self.path}")
        owner, name, resolve, _, *rest = [*self.path.strip("/").split("/"), "", "", ""]
        repository, file = f"{owner}/{name}", "/".join(part for part in rest if part)
        if repository == GATED:
            return self.refuse(403, "GatedRepo")
        if repository != MODEL or resolve != "resolve":
            return self.refuse(401, "RepoNotFound")
        path = self.server.folder / file
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as timm pushes it, a classifier with it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(net, folder, model_config={"license": "mit"}, safe_serialization=True)
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with Hub(model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(12):
        (folder / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    return folder


def crlf_(hub: Hub, cwd: Path, *words: str, **more: str) -> Said:
    """A process of its own: the client reads where its hub is when it is imported."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_XET": "1", **more}
    return there(PIPES, [*PROGRAM, *words], cwd=cwd, **environment)


def test_a_model_of_the_hub_is_fetched_once_and_then_there_without_it(
    hub: Hub, model: Path, photos: Path, tmp_path: Path
):
    embed = ("embed", "photos", "--model", f"hf-hub:{MODEL}", "--device", "cpu")
    code, said = crlf_(hub, tmp_path, *embed, "--out", "first")
    assert code == 0 and f"starts from hf-hub:{MODEL}: 75 of the encoder's 75 tensors" in said
    run = crlf.Run(tmp_path / "first")
    assert run.scores["started_from"]["source"] == f"hf-hub:{MODEL}"
    assert run.recipe.encoder == "timm:test_resnet" and run.scores["started_from"]["licence"] == "mit"
    net = timm.create_model(f"local-dir:{model}", pretrained=True, num_classes=0)
    taken = run.tensors(ENCODER)
    assert all(torch.equal(value, taken[name]) for name, value in net.state_dict().items())
    assert {path.split("/")[1] + "/" + path.split("/")[2] for path in hub.asked} == {MODEL}, "nobody else is asked"
    fetched = [path for path in hub.asked if path.startswith("GET") and path.endswith("model.safetensors")]
    assert len(fetched) == 1, hub.asked

    before = len(hub.asked)
    code, said = crlf_(hub, tmp_path, *embed, "--out", "offline", HF_HUB_OFFLINE="1")
    assert code == 0 and len(hub.asked) == before, "offline mode asks nobody"
    offline = crlf.Run(tmp_path / "offline")
    assert offline.scores["started_from"]["sha256"] == run.scores["started_from"]["sha256"]
    assert (offline.array("train_emb.npy") == run.array("train_emb.npy")).all()

    code, said = crlf_(
        hub,
        tmp_path,
        "pretrain",
        "photos",
        "--init",
        f"hf-hub:{MODEL}",
        "--epochs",
        "1",
        "--out",
        "more",
        "--device",
        "cpu",
    )
    assert code == 0 and len([path for path in hub.asked if path in fetched]) == 1, "the cache has it"


@pytest.mark.parametrize(
    "name, more, says",
    [
        (GATED, {}, "its owner asks you to accept terms first: do so on its page, then log in with `hf auth login`"),
        ("someone/nothing", {}, "the hub has no such model, or it is private"),
        (MODEL, {"HF_HUB_OFFLINE": "1"}, "the hub cannot be reached, and its weights are not in the cache"),
    ],
)
def test_what_a_hub_refuses_is_one_line(
    name: str, more: dict[str, str], says: str, hub: Hub, photos: Path, tmp_path: Path
):
    code, said = crlf_(hub, tmp_path, "embed", "photos", "--model", f"hf-hub:{name}", "--out", "run", **more)
    assert code == 2 and said.splitlines()[-1].startswith(f"crlf embed: error: weights 'hf-hub:{name}': {says}")
    assert "Traceback" not in said and not (tmp_path / "run").exists()


def test_a_hub_without_weights_that_timm_reads(hub: Hub, photos: Path, tmp_path: Path):
    hub.folder = tmp_path / "model"
    hub.folder.mkdir()
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (hub.folder / "config.json").write_text(json.dumps(config))
    code, said = crlf_(hub, tmp_path, "embed", "photos", "--model", f"hf-hub:{MODEL}", "--out", "run")
    assert code == 2 and "the hub has no weights of it that timm can read" in said.splitlines()[-1]
