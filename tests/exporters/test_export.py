"""An export gives what the run gives, where there is no CRLF; what cannot be exported is refused and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from terminal import refused
from torch import nn

import crlf
from crlf import cli, encoders
from crlf import data as sources
from crlf.data import PUBLISHED, ImageSet
from crlf.data.datasets import shapes
from crlf.embedding.embed import embed_images, load_encoder
from crlf.encoders import ENCODERS
from crlf.errors import InputError
from crlf.exporters import export, formats, in_timm, model_card
from crlf.exporters.formats import FORMATS
from crlf.normalisation import Normalisation
from crlf.recipe import Recipe
from crlf.runs.files import save_tensors, write_json
from crlf.runs.run import ENCODER, RECIPE, Run, claim

GRAY = Normalisation(mean=(0.5,), std=(0.25,))


def images(channels: int, height: int, width: int) -> torch.Tensor:
    """Twelve drawn images, uint8 (12, C, H, W)."""
    drawn = shapes.draw_set("train", 12, seed=0).images[:, [0, 1, 2, 0][:channels]]
    return nn.functional.interpolate(drawn.float(), (height, width)).to(torch.uint8).contiguous()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a run without training it; its batch norms have statistics that are not the first ones."""

    def made(encoder: str, channels: int = 3, height: int = 16, width: int = 16, **settings) -> Run:
        pixels = images(channels, height, width)
        split = ImageSet(pixels, None, (), [f"{i}.png" for i in range(len(pixels))])
        monkeypatch.setitem(sources.SOURCES, "drawn", lambda data_dir: (split, split))
        by = GRAY if channels != 3 else PUBLISHED["cifar10"]
        recipe = Recipe(encoder=encoder, data="drawn", normalisation=by, **settings)
        run = claim(tmp_path / "run", recipe.to_dict(), resume=False, overwrite=True)
        run.release()
        torch.manual_seed(0)
        network = encoders.build(encoder, channels, min(height, width))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        save_tensors(run.file(ENCODER), network.state_dict())
        return run

    return made


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """Run embed.py in this process: torch and timm take seconds to import."""

    def embedded(pixels: np.ndarray, folder: Path, verb: str) -> np.ndarray:
        with contextlib.chdir(folder) if sys.version_info >= (3, 11) else inside(folder):
            function = runpy.run_path(f"{verb}.py")[verb]
            return np.concatenate([function(part) for part in np.split(pixels, [1, 4])])

    monkeypatch.setattr(export, "in_fresh_process", embedded)


@contextlib.contextmanager
def inside(folder: Path):
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def record(folder: Path) -> dict:
    return json.loads((folder / "export.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("format, encoder", [("onnx", "cnn"), ("torch", "cnn"), ("timm", "resnet18")])
def test_a_fresh_process_without_crlf_gives_the_same(format: str, encoder: str, make, capsys):
    folder = crlf.export(make(encoder), format=format)
    assert record(folder)["max_difference"] <= 1e-4 * max(1, record(folder)["largest_number"])
    assert f"largest difference {record(folder)['max_difference']:.1e}" in capsys.readouterr().out
    assert sorted(record(folder)["files"]) == sorted(path.name for path in folder.iterdir())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("```python\n") == 1 and f"```python\n{(folder / 'embed.py').read_text()}```" in card


def test_the_fresh_process_has_no_crlf(tmp_path: Path):
    code = "import crlf\ndef embed(images): return images"
    (tmp_path / "embed.py").write_text(code)
    with pytest.raises(InputError, match="does not load in a fresh process: ModuleNotFoundError: import of crlf"):
        export.in_fresh_process(np.zeros((6, 1), np.uint8), tmp_path)
    (tmp_path / "embed.py").write_text("def embed(images): return images + 1")
    assert (export.in_fresh_process(np.arange(6, dtype=np.uint8)[:, None], tmp_path)[:, 0] == np.arange(1, 7)).all()


TRACED = ["resnet18", "timm:test_vit"]  # and cnn, above: a family each; the larger ones take minutes, and no other code
TABLE = [
    *(("timm", name) for name in [*ENCODERS, "timm:resnet10t"] if name != "cnn"),
    *((format, name) for format in ("torch", "onnx") for name in TRACED),
]
if os.environ.get("CRLF_TEST_ALL") == "1":
    TABLE += [(format, name) for format in ("torch", "onnx") for name in ENCODERS]


@pytest.mark.long
@pytest.mark.parametrize("format, encoder", TABLE)
def test_every_format_takes_every_encoder_that_it_can(format: str, encoder: str, make, here):
    crlf.export(make(encoder), format=format)  # the comparison is part of it


@pytest.mark.parametrize("format, encoder, shape", [
    ("timm", "resnet18", (1, 16, 24)), ("timm", "resnet18", (4, 64, 64)), ("timm", "vit_tiny", (1, 16, 24)),
    ("torch", "cnn", (1, 24, 16)),
])  # fmt: skip
def test_other_shapes(format: str, encoder: str, shape: tuple[int, int, int], make, here):
    crlf.export(make(encoder, *shape), format=format)


def test_the_comparison_finds_what_is_wrong(make, here, monkeypatch: pytest.MonkeyPatch):
    run = make("resnet18")
    monkeypatch.setattr(in_timm, "small_stem", lambda weights, right=in_timm.small_stem: wrong(right(weights)))

    def wrong(weights: dict) -> dict:
        return weights | {"conv1.weight": weights["conv1.weight"].flip(3)}

    with pytest.raises(InputError, match=r"the export differs from the run by .*1e-04 of it is allowed"):
        crlf.export(run, format="timm")
    assert sorted(path.name for path in run.path.iterdir()) == ["encoder_simclr.pth", "recipe.json"]


@pytest.mark.parametrize("scale, off, allowed", [(1.0, 0.9e-4, True), (1.0, 1.1e-4, False), (9.0, 8e-4, True)])
def test_a_small_difference_is_one(monkeypatch: pytest.MonkeyPatch, scale: float, off: float, allowed: bool):
    """A ten-thousandth: of the largest number, or of 1."""
    own = torch.tensor([[scale, 0.0], [0.5, -0.1]])
    made = formats.Exported(lambda images: own, "", "", "onnx", "")  # type: ignore[arg-type]
    monkeypatch.setattr(export, "in_fresh_process", lambda *given: own.numpy() + np.float32([[0, off], [0, 0]]))
    with contextlib.nullcontext() if allowed else pytest.raises(InputError, match=r"differs from the run by 1\.1e-04"):
        found = export.compare(made, images(3, 4, 4), Path())
        assert found == pytest.approx({"max_difference": off, "largest_number": scale}, rel=1e-3)


def test_onnx_gives_the_runs_own_embeddings_for_any_batch(make, here):
    run = make("cnn")
    folder = crlf.export(run, format="onnx")
    recipe = run.recipe
    pixels = images(3, 16, 16)
    own = embed_images(load_encoder(run, recipe, pixels.shape[1:]), pixels, recipe.normalisation)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [i.type for i in session.get_inputs()] == ["tensor(uint8)"] and len(session.get_inputs()) == 1
    for batch in (1, 2, 5, 12):
        found = session.run(None, {"images": pixels[:batch].numpy()})[0]
        np.testing.assert_allclose(found, own[:batch], atol=1e-5)
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert {i.version for i in model.opset_import if i.domain == ""} == {formats.OPSET}
    assert f"opset {formats.OPSET}" in (folder / "README.md").read_text()


@pytest.mark.parametrize("encoder, size", [("resnet18", 16), ("resnet18", 64), ("vit_tiny", 32)])
def test_timms_own_transform_prepares_an_image_as_the_run_does(encoder: str, size: int, make, here):
    run = make(encoder, 3, size, size)
    folder = crlf.export(run, format="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = images(3, size, size)
    with torch.no_grad():
        found = model(torch.stack([transform(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in pixels]))
    recipe = Recipe(encoder=encoder, embedding=in_timm.PLAIN, normalisation=PUBLISHED["cifar10"])
    own = embed_images(load_encoder(run, recipe, pixels.shape[1:]), pixels, recipe.normalisation)
    np.testing.assert_allclose(found.numpy(), own, atol=1e-4 * np.abs(own).max())


def test_timm_puts_a_classifier_on_it_and_takes_other_channels(make, here):
    folder = crlf.export(make("resnet18"), format="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7, in_chans=1)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


def test_the_small_stem_in_timms_terms_is_the_same_convolution():
    """Against the definition, at every pixel, borders too, without the network behind it."""
    torch.manual_seed(0)
    kernel = torch.randn(64, 3, 3, 3)
    stem = in_timm.small_stem({"conv1.weight": kernel})
    x = torch.randn(2, 3, 5, 8)
    big = nn.functional.interpolate(x, scale_factor=4)
    first = nn.functional.conv2d(big, stem["conv1.weight"], stride=2, padding=3)
    second = nn.functional.conv2d(first, stem["maxpool.0.weight"], stride=2, padding=1)
    torch.testing.assert_close(second, nn.functional.conv2d(x, kernel, padding=1), atol=1e-5, rtol=1e-5)


def test_the_card_is_what_the_hub_reads(make, here):
    run = make("resnet18")
    protocol = {"embedding": "something else", "linear": "a | b"}
    run.update_scores(linear_accuracy=0.5, chance=0.1, protocol=protocol)
    text = (crlf.export(run, format="timm", license="cc-by-4.0") / "README.md").read_text(encoding="utf-8")
    meta = ModelCard(text).data
    assert (meta.license, meta.library_name, meta.metrics) == ("cc-by-4.0", "timm", ["accuracy"])
    assert meta.pipeline_tag == "image-feature-extraction" and {"simclr", "crlf"} <= set(meta.tags)
    assert "| linear probe | 50.0 % | a \\| b |" in text and "Measured on something else; this file gives" in text
    assert "largest difference from the run's encoder is" in text


def test_the_card_names_a_data_set_and_keeps_a_path_to_itself(make, here, tmp_path: Path):
    run = make("resnet18")
    write_json(run.file(RECIPE), run.settings | {"data": "cifar10"})
    made = formats.Exported(nn.Identity(), "", "", "onnx", "")
    fields = yaml.safe_load(model_card.front_matter(run, made, "mit").strip("-\n"))
    assert fields["datasets"] == ["uoft-cs/cifar10"]
    private = tmp_path / "someone's secret" / "Füchse und Dachse"
    private.mkdir(parents=True)
    np.save(private / "images.npy", images(3, 16, 16).numpy())
    write_json(run.file(RECIPE), run.settings | {"data": str(private / "images.npy")})
    folder = crlf.export(run, format="timm", out=tmp_path / ("ü " * 60) / "aus")
    for name in ("README.md", "recipe.json", "export.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "secret" not in text and str(tmp_path) not in text, name
    assert "on images.npy" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_exported(make, here, tmp_path: Path):
    run = str(make("cnn").path)
    assert "'cnn' is not one that timm can build: --format onnx" in refused("export", run, "--format", "timm")
    assert "Did you mean 'onnx'?" in refused("export", run, "--format", "onxx")
    (tmp_path / "file").touch()
    assert "is a file" in refused("export", run, "--out", str(tmp_path / "file"))
    assert "cannot be written" in refused("export", run, "--out", str(tmp_path / "file" / "below"))
    assert "'encoder_simclr.pth', which is not part of an export" in refused("export", run, "--out", run)
    os.unlink(tmp_path / "run" / "encoder_simclr.pth")
    assert "`crlf pretrain` makes it" in refused("export", run)
    assert os.listdir(run) == ["recipe.json"] and sorted(os.listdir(tmp_path)) == ["file", "run"]


def test_an_export_is_replaced_only_when_asked(make, here):
    run = make("resnet18")
    folder = crlf.export(run, format="timm")
    again = ["export", str(run.path), "--format", "timm"]
    old = (folder / "README.md").read_bytes()
    assert "holds an export: --overwrite replaces it" in refused(*again)
    assert (folder / "README.md").read_bytes() == old
    assert cli.main([*again, "--license", "mit", "--overwrite"]) == 0
    assert (folder / "README.md").read_bytes() != old
    (folder / "mine.txt").touch()
    assert "'mine.txt'" in refused(*again, "--overwrite")


@pytest.mark.parametrize("format, module", [("onnx", "onnxscript"), ("onnx", "onnxruntime")])
def test_without_the_library(format: str, module: str, make, monkeypatch: pytest.MonkeyPatch):
    run = make("resnet18")
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("export", str(run.path), "--format", format)
    assert line == f"crlf export: error: --format {format} needs {module}: pip install 'crlf[{format}]'"
    assert not run.file(format).exists()


def test_the_page_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in FORMATS)
