"""A model without training is a run: what comes after training works on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny_images import encoded, pixels

import crlf
from crlf import cli
from crlf.errors import InputError
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER, LOSS, REPORT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of timm, in a folder as timm writes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), folder, model_config={"license": "mit"})
    return f"local-dir:{folder}"


def photos(folder: Path, classes: tuple[str, ...] = ()) -> Path:
    for seed in range(24):
        place = folder / classes[seed % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    return folder


LABELLED = pytest.param(("cat", "dog"), marks=pytest.mark.long, id="labelled")


@pytest.mark.parametrize("classes", [pytest.param((), id="unlabelled"), LABELLED])
def test_all_that_follows_training_works(model: str, classes: tuple[str, ...], tmp_path: Path, capsys):
    images, out = photos(tmp_path / "photos", classes), tmp_path / "run"
    assert cli.main(["embed", str(images), "--model", model, "--out", str(out), "--device", "cpu"]) == 0
    run = crlf.Run(out)
    assert not run.file(LOSS).exists() and run.scores["train_seconds"] == 0 and run.scores["epochs"] == 0
    origin = run.scores["started_from"]
    assert origin["encoder"] == "timm:test_resnet" and len(origin["sha256"]) == 64
    assert run.recipe.normalisation.mean == tuple(timm.get_pretrained_cfg("test_resnet").mean)
    one = next(images.rglob("*.png"))
    after = [
        ["probe"], ["draw"], ["report"], ["summary"], ["doctor"],
        ["search", str(one), "-k", "2", "--figure", str(tmp_path / "near.png")],
        ["export", "--format", "torch"],
    ][: None if classes else 3]  # fmt: skip
    for command, *words in after:
        assert cli.main([command, str(out), *words, *["--device", "cpu"] * (command in ("probe", "search"))]) == 0, (
            command
        )
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "nan" not in said.out
    report = run.file(REPORT).read_text()
    assert f"Nothing was trained: the encoder has the weights of {model}" in report.replace("&#39;", "'")
    assert not classes or f"nothing was trained: the weights of {model}" in said.out
    if classes:
        assert "nothing was trained" in run.scores["protocol"]["untrained"]
        assert cli.main(["finetune", str(out), str(images), "--device", "cpu", "--out", str(tmp_path / "c")]) == 0
    else:
        assert 0 <= run.scores["crops_accuracy"] <= 1 and "crops_over_untrained" not in run.scores


def test_the_embeddings_are_the_models(model: str, tmp_path: Path):
    images = photos(tmp_path / "photos")
    run = crlf.embed(images, model=model, out=tmp_path / "run", device="cpu")
    whole = timm.create_model(model, pretrained=True, num_classes=0).eval()
    side = timm.get_pretrained_cfg("test_resnet").input_size[-1]
    assert run.scores["image_shape"] == [3, side, side]  # the size that it was trained on
    x = crlf.data.load(str(images), None, run.recipe.images, 0)[0].images
    mean, std = (torch.tensor(v)[:, None, None] for v in (run.recipe.normalisation.mean, run.recipe.normalisation.std))
    with torch.no_grad():
        both = [whole((part.float() / 255 - mean) / std) for part in (x, x.flip(3))]
    np.testing.assert_allclose(run.array("train_emb.npy"), (sum(both) / 2).numpy(), rtol=1e-4, atol=1e-5)


def test_a_run_is_a_model_too(narrow: None, tmp_path: Path):
    tiny = {"data": "shapes", "subset": 48, "batch_size": 16, "views": 2, "epochs": 1}
    before = crlf.pretrain(Recipe(**tiny), out=tmp_path / "before", device="cpu")
    images = photos(tmp_path / "photos")
    after = crlf.embed(images, model=str(before.path), out=tmp_path / "after", device="cpu")
    table = crlf.embed(before, images, out=tmp_path / "table.parquet", device="cpu")
    np.testing.assert_allclose(after.array("train_emb.npy"), np.load(table.with_suffix(".npy")), rtol=1e-5, atol=1e-6)
    assert all(
        torch.equal(v, after.tensors(ENCODER)[k]) for k, v in before.tensors(ENCODER).items() if "num_b" not in k
    )


@pytest.mark.long
def test_a_classifier_is_a_model_too(narrow: None, tmp_path: Path):
    images = photos(tmp_path / "photos", ("cat", "dog"))
    recipe = Recipe(data=str(images), batch_size=8, views=2, epochs=1)
    before = crlf.embed(crlf.pretrain(recipe, out=tmp_path / "before", device="cpu"), device="cpu")
    crlf.finetune(before, images, mode="full", epochs=1, out=tmp_path / "classifier", device="cpu")
    after = crlf.embed(images, model=str(tmp_path / "classifier"), out=tmp_path / "after", device="cpu")
    tuned, taken = crlf.Run(tmp_path / "classifier").tensors("classifier.pth"), after.tensors(ENCODER)
    assert all(torch.equal(value, tuned[f"encoder.{k}"]) for k, value in taken.items() if "num_batches" not in k)
    assert any(not torch.equal(value, before.tensors(ENCODER)[k]) for k, value in taken.items())


def test_what_cannot_be_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, path = photos(tmp_path / "photos"), tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1)}, path)
    for words, message in (
        (["--model", str(path)], "do not name their network: name it with `crlf pretrain"),
        (["--model", "nowhere"], "weights 'nowhere' do not exist: they must be timm:NAME"),
    ):
        assert cli.main(["embed", str(images), *words, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="model embeds images without a run"):
        crlf.embed(images, "more", model="timm:x")
    with pytest.raises(InputError, match=r"epochs must be in 1\.\.100000, not 0"):
        Recipe(epochs=0)  # random weights, untrained, are no run
