"""Files of strangers: nothing that is loaded runs code, fills the memory, leads out of its folder, or is HTML."""

from __future__ import annotations

import ast
import html
import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_images import RGB, encoded

import crlf
from crlf import data
from crlf.data.datasets import archives
from crlf.data.files import shards
from crlf.data.files.decode_cache import csv_text
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.files import write_json
from crlf.runs.run import CLASSES, ENCODER, LOCK, LOG, MAPS, RECIPE, SCORES, Run
from crlf.runtime import devices
from crlf.visualization.figures import draw, projections
from crlf.visualization.report import report

CRLF = Path(crlf.__file__).parent
TINY = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1, precision="float32")


# What the code never does


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in crlf: the name that is called, as it is written, and the call."""
    found = []
    for path in CRLF.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((ast.unparse(node.func), node))
    return found


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def test_no_loader_is_left_to_its_defaults():
    loads = [call for name, call in calls() if name == "torch.load"]
    assert loads and all(keyword(call, "weights_only") is True for call in loads)
    arrays = [call for name, call in calls() if name == "np.load"]
    assert len(arrays) > 3 and all(keyword(call, "allow_pickle") in (None, False) for call in arrays)  # None is False


def test_nothing_is_executed():
    forbidden = r"(pickle|marshal|shelve|joblib|dill|yaml)\.\w*load\w*|eval|exec|compile|__import__|os\.(system|popen)"
    assert not [name for name, _ in calls() if re.fullmatch(forbidden, name)]
    assert not [name for name, call in calls() if keyword_is_true(call, "shell")]
    readers = [p.name for p in CRLF.rglob("*.py") if re.search(r"^import pickle|^from pickle", p.read_text(), re.M)]
    assert readers == ["cifar_pickle.py"]  # whose Unpickler admits five names: tests/data/test_data.py


def keyword_is_true(call: ast.Call, name: str) -> bool:
    return any(k.arg == name and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords)


# Small files that hold a lot


def bomb(inner: bytes, name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, inner)
    return buffer.getvalue()


def zeros(*shape: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, np.uint8))
    return buffer.getvalue()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bytes_held", lambda column: 0)
    monkeypatch.setattr(devices, "memory_there", lambda device: 10_000_000)


def test_an_npz_bomb(tmp_path: Path, little_memory: None):
    path = tmp_path / "images.npz"
    path.write_bytes(bomb(zeros(2000, 3, 32, 32), "images.npy"))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"cannot be used: its contents take 6,144,128 bytes, more than half"):
        data.load(str(path))
    path.write_bytes(bomb(zeros(200, 3, 32, 32), "images.npy"))
    assert len(data.load(str(path))[0]) == 200


def test_a_bomb_in_the_place_of_maps(tmp_path: Path, little_memory: None):
    run = Run(tmp_path)
    run.file(MAPS).write_bytes(bomb(zeros(8_000_000), "rows.npy"))
    with pytest.raises(InputError, match=r"maps\.npz' cannot be read as maps: its contents take 8,000,128 bytes"):
        projections.kept(run, np.zeros((2, 2), np.float32))


def test_a_bomb_in_the_place_of_weights(tmp_path: Path):
    run = Run(tmp_path)
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1_000_000)}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info))
    assert len(packed.getvalue()) < 20_000
    run.file(ENCODER).write_bytes(packed.getvalue())
    with pytest.raises(InputError, match="its contents are larger than the file"):
        run.tensors(ENCODER)


@pytest.mark.parametrize("packing", ["zstd", "gzip"])
def test_a_parquet_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str):
    path = tmp_path / "images.parquet"
    table = pa.table({"image": [b"\0" * 4_000_000 + bytes([i]) for i in range(4)]})
    pq.write_table(table, path, compression=packing, use_dictionary=False)
    shard = shards.look_at(path)
    assert path.stat().st_size < 100_000 and len(list(shard.values("image"))) == 4
    monkeypatch.setattr(shards, "UNPACKED", 10_000_000)
    with pytest.raises(InputError, match=r"cannot be read: its column 'image' would grow from [\d,]+ to 16,\d"):
        list(shard.values("image"))


def test_a_tar_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("other", "wanted"):
            info = tarfile.TarInfo(name)
            info.size = 5_000_000
            tar.addfile(info, io.BytesIO(b"\0" * info.size))
    assert len(archives.members(path, {"wanted"}, 6_000_000)["wanted"]) == 5_000_000
    with pytest.raises(InputError, match=r"its member 'wanted' has 5,000,000 bytes, above 4,000,000"):
        archives.members(path, {"wanted"}, 4_000_000)
    monkeypatch.setattr(archives, "LONGEST", 8_000_000)
    with pytest.raises(InputError, match=r"it has more than 8,000,000 bytes"):
        archives.members(path, {"wanted"}, 6_000_000)


def test_a_nest_of_brackets(tmp_path: Path):
    run = Run(tmp_path)
    for name in (RECIPE, SCORES, LOG):
        run.file(name).write_text("[" * 100_000)
    for read in (lambda: run.settings, lambda: run.recipe, lambda: run.scores):
        with pytest.raises(InputError, match="cannot be read as JSON"):
            read()
    assert run.log() == []


# A run folder of a stranger


class Planted:
    """A pickle that would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = crlf.pretrain(TINY, out=tmp_path_factory.mktemp("whole"), device="cpu")
    crlf.embed(run, device="cpu")
    crlf.probe(run, device="cpu")
    return run.path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.mark.parametrize("name", ["encoder_simclr.pth", "checkpoint.pt", "train_emb.npy", "test_lbl.npy", "maps.npz"])
def test_a_pickle_in_any_file_does_not_run(copy: Path, tmp_path: Path, name: str):
    trace = tmp_path / "ran"
    if name.endswith("pth") or name.endswith("pt"):
        torch.save({"weight": Planted(trace)}, copy / name)
        (copy / "checkpoint-before.pt").unlink(missing_ok=True)
    elif name.endswith("npy"):
        np.save(copy / name, np.array([Planted(trace)], dtype=object), allow_pickle=True)
    else:
        np.savez(copy / name, rows=np.array([Planted(trace)], dtype=object))
    stages = {
        "encoder_simclr.pth": lambda: crlf.load(copy),
        "checkpoint.pt": lambda: crlf.pretrain(TINY, out=copy, device="cpu", resume=True),
    }
    with pytest.raises(InputError, match=re.escape(name)):
        stages.get(name, lambda: (crlf.probe(copy, device="cpu"), projections.maps(Run(copy))))()
    assert not trace.exists()


@pytest.mark.long
def test_links_in_a_run_folder_lead_nowhere(copy: Path, tmp_path: Path):
    """What a stage writes takes the place of a link; the file that it pointed to stays as it was."""
    victims = {}
    for name in [*Run(copy).held(), "report.html", "loss_curve.png"]:
        victim = tmp_path / f"victim of {name}"
        content = (copy / name).read_bytes() if (copy / name).exists() else b"mine"
        victim.write_bytes(content)
        victims[victim] = content
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(victim)
    longer = Recipe.from_dict(Run(copy).settings | {"epochs": 2})
    crlf.pretrain(longer, out=copy, device="cpu", overwrite=True)
    crlf.embed(copy, device="cpu")
    crlf.probe(copy, device="cpu")
    draw(copy, format="png")
    report(copy)
    assert all(victim.read_bytes() == content for victim, content in victims.items())


def test_a_lock_that_is_a_link_is_refused(copy: Path, tmp_path: Path):
    (copy / LOCK).symlink_to(tmp_path / "made")
    with pytest.raises(InputError, match="cannot be written"):
        crlf.pretrain(TINY, out=copy, device="cpu", resume=True)
    assert not (tmp_path / "made").exists()


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_names_from_files_are_text_in_the_report(copy: Path):
    run = Run(copy)
    write_json(run.file(CLASSES), [EVIL, *run.classes[1:]])
    for split in ("train", "test"):
        write_json(run.file(f"{split}_ids.json"), [EVIL] * len(run.ids(split)))
    run.update_scores(device=EVIL, protocol={"linear": EVIL})
    draw(run, format="png")
    page = report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "alert(1)" in page  # it is there, as text
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = html.unescape(policy)
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy and "http" not in policy


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=cmd|"/c calc"!A1'])
def test_cells_are_no_formulas(cell: str):
    line = csv_text(["name"], [[cell]]).split("\n", 1)[1]
    assert line.lstrip('"').startswith("'")


# Secrets


@pytest.mark.long
def test_secrets_of_the_environment_go_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    secret = "s3cr3t-of-the-environment"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, secret)
    run = crlf.pretrain(TINY, out=tmp_path / "run", device="cpu")
    crlf.embed(run, device="cpu")
    crlf.probe(run, device="cpu")
    draw(run)
    report(run)
    crlf.export(run, format="torch", out=tmp_path / "export")
    with pytest.raises(InputError) as refused:
        crlf.pretrain(Recipe(data="shapes", batch_size=60_000), out=tmp_path / "other", device="cpu")
    said = "".join(capfd.readouterr()) + str(refused.value)
    assert secret not in said
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(held) > 20 and not [path.name for path in held if secret.encode() in path.read_bytes()]


def test_metadata_of_pictures_is_not_carried_on(tmp_path: Path, cache: Path):
    """A photograph may say where it was taken: what is kept are pixels."""
    folder, exif = tmp_path / "images", Image.Exif()
    folder.mkdir()
    exif[0x010E] = "taken at home"
    for i in range(4):
        pixels = np.roll(RGB, i, axis=0)
        (folder / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    run = crlf.pretrain(Recipe(data=str(folder), batch_size=2, views=2, epochs=1), out=tmp_path / "run", device="cpu")
    crlf.embed(run, device="cpu")
    report(run)
    for place in (run.path, cache):
        assert not [path for path in place.rglob("*") if path.is_file() and b"taken at home" in path.read_bytes()]
