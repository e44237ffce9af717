"""An ONNX file as a run: what comes after training works on it, and it is copied and never trained."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_images import encoded, pixels
from torch import nn

import crlf
from crlf import cli
from crlf.encoders.onnx_file import OnnxFile
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER

pytest.importorskip("onnxscript")


class Net(nn.Module):
    """Float (B, 3, H, W) -> (B, 12)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.float()).relu().mean(dim=(2, 3))


def saved(path: Path, net: nn.Module, example: torch.Tensor, dynamic: bool = True) -> Path:
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
    program = torch.onnx.export(net.eval(), (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(path, external_data=False)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("onnx") / "m.onnx", Net(), torch.randn(2, 3, 32, 32))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(24):
        place = tmp_path / "photos" / ("cat", "dog")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    return tmp_path / "photos"


def test_the_embeddings_are_what_the_file_gives(model: Path, photos: Path, tmp_path: Path, capsys):
    run = crlf.embed(photos, model=str(model), out=tmp_path / "run", device="cpu")
    assert "assumed to need images normalised by ImageNet's mean" in capsys.readouterr().err
    assert run.scores["image_shape"] == [3, 32, 32]
    assert run.scores["started_from"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    images = crlf.data.load(str(photos), None, run.recipe.images)[0].images
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = Net()((images.float() / 255 - mean) / std)
    np.testing.assert_allclose(run.array("train_emb.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_all_that_follows_works_without_the_file(model: Path, photos: Path, tmp_path: Path, capsys):
    path, out = tmp_path / "m.onnx", tmp_path / "run"
    path.write_bytes(model.read_bytes())
    assert cli.main(["embed", str(photos), "--model", str(path), "--out", str(out), "--device", "cpu"]) == 0
    assert cli.main(["finetune", str(out), str(photos), "--out", str(tmp_path / "c"), "--device", "cpu"]) == 0
    path.unlink()
    image = str(next(photos.rglob("*.png")))
    for command, *words in (
        ["probe"], ["draw", "--format", "png"], ["report"], ["summary"], ["doctor"], ["search", image, "-k", "2"],
    ):  # fmt: skip
        assert cli.main([command, str(out), *words]) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "first layer" not in said.err
    encoder = crlf.load(out, device="cpu")
    assert encoder.encode(image).shape == (1, 12)


def test_an_export_is_a_copy(model: Path, photos: Path, tmp_path: Path):
    run = crlf.embed(photos, model=str(model), out=tmp_path / "run", device="cpu")
    folder = crlf.export(run, format="onnx")  # which is compared in a fresh process
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    for other, says in (("torch", "format must be onnx"), ("timm", "--format onnx copies it")):
        with pytest.raises(InputError, match=says):
            crlf.export(run, format=other)


@pytest.mark.long
def test_what_crlf_exports_it_takes_back(photos: Path, tmp_path: Path, narrow: None):
    """Pixels go in as they are."""
    first = crlf.pretrain(Recipe(data=str(photos), batch_size=8, views=2, epochs=1), out=tmp_path / "a", device="cpu")
    crlf.embed(first, device="cpu")
    made = crlf.export(first, format="onnx")
    again = crlf.embed(photos, model=str(made / "model.onnx"), out=tmp_path / "b", device="cpu")
    np.testing.assert_allclose(again.array("train_emb.npy"), first.array("train_emb.npy"), rtol=1e-3, atol=1e-4)
    assert again.recipe.normalisation.mean == (0.0,)


def test_it_teaches(model: Path, photos: Path, tmp_path: Path, narrow: None, capsys):
    words = ["--method", "distill", "--teacher", str(model), "--epochs", "1", "--batch-size", "8"]
    assert cli.main(["pretrain", str(photos), *words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "24 images of 32 px, 12 features each" in capsys.readouterr().err


def test_a_batch_and_a_type_of_its_own(tmp_path: Path):
    fixed = OnnxFile(saved(tmp_path / "fixed.onnx", Net(), torch.randn(4, 3, 16, 16), dynamic=False))
    x = torch.randn(7, 3, 16, 16)
    torch.testing.assert_close(fixed(x), Net()(x), rtol=1e-4, atol=1e-5)
    assert (fixed.image_size, fixed.out_dim, fixed.pixels) == (16, 12, False)
    whole = OnnxFile(saved(tmp_path / "bytes.onnx", Net(), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)))
    assert whole.pixels and torch.allclose(whole(x.sigmoid()), Net()((255 * x.sigmoid()).round()), atol=1e-3)
    twin = copy.deepcopy(whole)
    empty = OnnxFile(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match=r"gone\.onnx' does not exist"):
        empty(x)
    empty.load_state_dict(twin.state_dict())
    assert torch.equal(empty(x.sigmoid()), whole(x.sigmoid()))


def test_what_is_no_such_model_is_one_line(model: Path, photos: Path, tmp_path: Path, capsys):
    (tmp_path / "text.onnx").write_text("nothing")

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    saved(tmp_path / "rows.onnx", Two(), torch.randn(2, 5))
    for words, says in (
        (["embed", str(photos), "--model", str(tmp_path / "text.onnx")], "are not an ONNX model"),
        (["embed", str(photos), "--model", str(tmp_path / "rows.onnx")], "must take one batch of images (B, 3, H, W)"),
        (["pretrain", str(photos), "--init", str(model), "--epochs", "1"], "are an ONNX file, which cannot be trained"),
    ):
        assert cli.main([*words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
        said = capsys.readouterr().err.splitlines()
        assert says in said[-1] and ": error: " in said[-1] and not (tmp_path / "run").exists()
    run = crlf.embed(photos, model=str(model), out=tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="mode must be linear for the ONNX file"):
        crlf.finetune(run, photos, mode="full", out=tmp_path / "c", device="cpu")
    assert run.file(ENCODER).is_file()
