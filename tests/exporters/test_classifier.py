"""An exported classifier gives the probabilities of `crlf classify`, and its classes' names, where there is no CRLF."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sampling import some
from terminal import refused
from torch import nn

import crlf
from crlf import cli
from crlf.data import PUBLISHED
from crlf.data.datasets import shapes
from crlf.encoders import EmbeddingSettings
from crlf.evaluation import classifier
from crlf.exporters import export
from crlf.normalisation import normalise
from crlf.recipe import Recipe
from crlf.runs.files import write_json
from crlf.runs.run import CLASSES, CLASSIFIER, SCORES

NAMES = ("disc | ring", "`Grüße` 🐈\n", "caf\udce9.png")  # as folders may be called
PLAIN = EmbeddingSettings(regions=1, mirror=False)
MIRRORED = EmbeddingSettings(regions=1, mirror=True)
SCORED = {
    **{"accuracy": 0.5, "accuracy_interval": [0.25, 0.75], "balanced_accuracy": 0.4, "chance": 0.1},
    **{"confidence": 0.52, "calibration_error": 0.03, "train_images": 9, "test_images": 20},
}

pytestmark = pytest.mark.usefixtures("cache")


def files(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Drawn images as files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = shapes.draw_set("train", count, seed=seed).images
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for path, image in zip(paths, drawn, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


@pytest.fixture
def make(tmp_path: Path):
    """A function that makes a classifier of random weights, whose batch norms have statistics of their own."""

    def made(encoder: str, embedding: EmbeddingSettings | None = None, test: str | None = None) -> Path:
        embedding = embedding or EmbeddingSettings()
        recipe = Recipe(encoder=encoder, data="shapes", embedding=embedding, normalisation=PUBLISHED["shapes"])
        torch.manual_seed(0)
        model = classifier.build(recipe, (3, 32, 32), len(NAMES))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        nn.init.normal_(model.head.weight, std=1 / model.head.weight.shape[1] ** 0.5)
        nn.init.zeros_(model.head.bias)
        images = normalise(shapes.draw_set("train", 32, seed=1).images, recipe.normalisation)
        with torch.no_grad():  # each class is the likeliest of some images
            logits = model.eval()(images)
            model.head.weight *= 2 / logits.std(dim=0)[:, None]
            model.head.bias -= model(images).mean(dim=0)
        data = str(tmp_path / "someone's secret" / "labelled")
        how = {"data": data, "test": test, "mode": "linear"}
        scores = SCORED | {"protocol": f"logistic regression; scored on the images of {test!r}"}
        made_from = {"recipe": recipe.to_dict(), "image_shape": [3, 32, 32], "finetune": how}
        classifier.save(tmp_path / "c", model, NAMES, made_from, scores)
        return tmp_path / "c"

    return made


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """Run classify.py in this process: torch and timm take seconds to import."""

    def classified(pixels: np.ndarray, folder: Path, verb: str) -> np.ndarray:
        monkeypatch.chdir(folder)
        function = runpy.run_path(f"{verb}.py")[verb]
        return np.concatenate([function(part) for part in np.split(pixels, [1, 4])])

    monkeypatch.setattr(export, "in_fresh_process", classified)


def in_fresh_process(folder: Path, pixels: np.ndarray, place: Path) -> tuple[np.ndarray, list[str]]:
    """The probabilities and the classes that classify.py gives where CRLF cannot be imported."""
    np.save(place / "in.npy", pixels)
    program = """
import sys
sys.modules["crlf"] = None
import json, numpy as np
from classify import classes, classify
np.save(sys.argv[2], classify(np.load(sys.argv[1])))
print(json.dumps(list(classes)))
"""
    command = [sys.executable, "-c", program, str(place / "in.npy"), str(place / "out.npy")]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return np.load(place / "out.npy"), json.loads(done.stdout.splitlines()[-1])


CASES = [("onnx", "cnn", None), ("torch", "cnn", None), ("timm", "resnet18", MIRRORED)]


@pytest.mark.long
@pytest.mark.parametrize("format, encoder, embedding", CASES)
def test_a_fresh_process_gives_what_crlf_classify_gives(format: str, encoder: str, embedding, make, tmp_path: Path):
    folder, paths = make(encoder, embedding), files(tmp_path / "images", 12)
    made = crlf.export(folder, format=format)
    assert made == folder / format and json.loads((made / "export.json").read_text())["max_difference"] <= 1e-5
    pixels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    found, names = in_fresh_process(made, pixels, tmp_path)
    assert names == list(NAMES), "each name at its output, whatever it holds"
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    ours = crlf.classify(folder, paths, device="cpu")
    assert [name for _, name, _ in ours] == [names[k] for k in found.argmax(axis=1)]
    assert len({name for _, name, _ in ours}) > 1, "or an order of classes could not be told from another"
    np.testing.assert_allclose(found.max(axis=1), [p for _, _, p in ours], atol=1e-5)
    card = (made / "README.md").read_text(encoding="utf-8")
    assert f"```python\n{(made / 'classify.py').read_text()}```" in card


@pytest.mark.parametrize("format, encoder, embedding", some([
    ("timm", "timm:test_vit", MIRRORED), ("timm", "resnet18", PLAIN), ("timm", "vit_tiny", None),
]))  # fmt: skip
def test_timm_builds_what_has_no_regions(format: str, encoder: str, embedding, make, here):
    folder = crlf.export(make(encoder, embedding), format=format)  # the comparison is part of it
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.num_classes == 3 and model.pretrained_cfg["label_names"] == list(NAMES)


@pytest.mark.long
def test_the_files_themselves_hold_the_names(make, here):
    folder = make("cnn")
    session = onnxruntime.InferenceSession(str(crlf.export(folder, format="onnx") / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(NAMES)
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    pixels, loaded = shapes.draw_set("train", 5, seed=0).images, classifier.load(folder)
    expected = classifier.probabilities(loaded.model, pixels, loaded.recipe.normalisation)
    np.testing.assert_allclose(session.run(None, {"images": pixels.numpy()})[0], expected, atol=1e-5)
    beside = {"classes": ""}
    torch.export.load(crlf.export(folder, format="torch") / "model.pt2", extra_files=beside)
    assert json.loads(beside["classes"]) == list(NAMES)


def test_the_card_says_what_it_is_and_keeps_paths_to_itself(make, here, tmp_path: Path):
    folder = crlf.export(make("cnn", test=str(tmp_path / "secret" / "others")), format="torch", license="mit")
    text = (folder / "README.md").read_text(encoding="utf-8")
    meta = ModelCard(text).data
    assert (meta.license, meta.pipeline_tag, meta.metrics) == ("mit", "image-classification", ["accuracy"])
    assert meta.datasets is None
    assert "| accuracy | 50.0 % (95 %: 25.0 to 75.0 %) |" in text and "On 20 images not used" in text
    assert "| mean confidence (the largest probability) | 52.0 % |" in text and "| chance: always" in text
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert rows == [r"| 0 | disc \| ring |", "| 1 | `Grüße` 🐈 |", r"| 2 | caf\\udce9.png |"]
    for path in folder.iterdir():
        if path.suffix != ".pt2":
            assert "secret" not in path.read_text(encoding="utf-8") and str(tmp_path) not in path.read_text(), path
    assert json.loads((folder / "export.json").read_text())["classes"] == list(NAMES)


@pytest.mark.long
def test_it_is_compared_on_its_own_images_where_they_are(make, here, tmp_path: Path):
    folder = make("cnn")
    found = json.loads((crlf.export(folder, format="torch") / "export.json").read_text())
    assert (found["images_are"], found["images"]) == ("images of noise", 64)
    how = json.loads((folder / CLASSIFIER).read_text())
    for seed, name in enumerate(("a", "b")):
        files(tmp_path / "labelled" / name, 5, seed)
    how["finetune"]["data"] = str(tmp_path / "labelled")
    write_json(folder / CLASSIFIER, how)
    found = json.loads((crlf.export(folder, format="torch", overwrite=True) / "export.json").read_text())
    assert (found["images_are"], found["images"]) == ("images that it learned from", 8)


def test_what_cannot_be_exported(make, here, tmp_path: Path):
    folder = make("resnet18")
    line = refused("export", str(folder), "--format", "timm")
    assert "a classifier of 2 x 2 regions is not one that timm can build: --format onnx" in line
    line = refused("export", str(make("cnn", PLAIN)), "--format", "timm")
    assert "'cnn' is not one that timm can build" in line
    (folder / CLASSES).unlink()
    assert "classes.json" in refused("export", str(folder))
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refused("export", str(tmp_path / "empty"))
    assert not (folder / "onnx").exists() and not (folder / "timm").exists()


@pytest.mark.long
def test_a_wrong_layer_is_found(make, here, monkeypatch: pytest.MonkeyPatch):
    """What the files give is compared to a hundred-thousandth."""
    right = export.in_fresh_process
    monkeypatch.setattr(export, "in_fresh_process", lambda *given: right(*given) + np.float32(2e-5))
    assert "the export differs from the run by 2.0e-05" in refused("export", str(make("cnn")), "--format", "torch")


def test_without_scores_nothing_is_said_of_its_worth(make, here):
    folder = make("cnn")
    (folder / SCORES).unlink()
    text = (crlf.export(folder, format="torch") / "README.md").read_text(encoding="utf-8")
    assert "## Evaluation\n\nNot measured." in text


def test_the_command_takes_what_finetune_made(make, here, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make("cnn")
    run = tmp_path / "run"
    run.mkdir()
    shutil.move(folder, run / "classifier")
    assert cli.main(["export", str(run / "classifier"), "--format", "torch"]) == 0
    assert "classify.py" in capsys.readouterr().out and (run / "classifier" / "torch" / "classify.py").exists()
    assert crlf.classify(run, files(tmp_path / "i", 1), device="cpu"), "and it is a classifier still"
