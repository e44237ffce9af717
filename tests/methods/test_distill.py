"""Distillation: its losses by hand, and a teacher's features row by row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from small_methods import met, teacher
from tiny_images import encoded, pixels

import crlf
from crlf import cli
from crlf.data import ImageSet
from crlf.encoders import CNN, InitSettings
from crlf.errors import InputError
from crlf.methods.distill import LOSSES, Distill, DistillSettings, agreement, cosine_loss, similarities, smooth_l1
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)


def photos(folder: Path, count: int = 12, side: int = 48) -> Path:
    folder.mkdir()
    for seed in range(count):
        (folder / f"{seed}.png").write_bytes(encoded(pixels(seed, side, side), "PNG"))
    return folder


# The losses


def test_cosine_by_hand():
    z = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [1.0, 1.0]]])  # two views of two images
    taught = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert cosine_loss(z, taught, 1.0).item() == pytest.approx(1 - (1 + 1 - 1 + math.sqrt(0.5)) / 4)


def test_smooth_l1_by_hand():
    z, taught = torch.tensor([[[0.0, 3.0]]]), torch.tensor([[0.5, 1.0]])
    assert smooth_l1(z, taught, 1.0).item() == pytest.approx((0.5 * 0.25 + 2 - 0.5) / 2)


def test_similarities_are_a_cross_entropy_over_the_others():
    """Image by image in float64, with torch's own cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    z, taught = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((3, 5, 4), (5, 6)))
    total = 0.0
    for view in z:
        for i in range(5):
            others = [j for j in range(5) if j != i]
            wanted = F.cosine_similarity(taught[i], taught[others]) / 0.2
            given = F.cosine_similarity(view[i], view[others]) / 0.2
            total += F.cross_entropy(given, wanted.softmax(dim=0)).item()
    assert similarities(z, taught, 0.2).item() == pytest.approx(total / 15, rel=1e-12)
    alike = torch.ones(2, 5, 4)
    assert similarities(alike, taught.float(), 0.1).item() == pytest.approx(math.log(4))


def test_the_agreement_is_a_correlation_of_pairs():
    z, taught = torch.randn(7, 4), torch.randn(7, 5)
    pairs = ~torch.eye(7, dtype=torch.bool)
    by = [F.cosine_similarity(rows[:, None], rows[None], dim=2)[pairs] for rows in (z, taught)]
    assert agreement(z, taught).item() == pytest.approx(float(np.corrcoef(*by)[0, 1]), abs=1e-5)
    assert agreement(taught, taught).item() == pytest.approx(1) and agreement(torch.ones(7, 4), taught) == 0


def test_both_is_the_sum():
    z, taught = torch.randn(2, 6, 4), torch.randn(6, 4)
    parts = cosine_loss(z, taught, 0.1) + similarities(z, taught, 0.1)
    assert LOSSES["both"](z, taught, 0.1).item() == pytest.approx(parts.item())


@pytest.mark.parametrize("agree", LOSSES)
def test_an_image_is_held_against_its_own_features(agree: str):
    """Rows say which images are in the batch: others would give another loss, and its own the smallest."""
    features = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    method = Distill(CNN(3, widths=(4, 8, 8), read=2), DistillSettings(agree=agree, hidden=16))
    method.learn_from(features)
    rows = torch.tensor([5, 0, 3, 6])
    centred = features - features.mean(dim=0)
    scale = centred.std(dim=0) if agree == "smooth-l1" else centred.std()
    z = (centred / scale)[rows].expand(2, -1, -1)
    right, stats = method.loss(z, rows=rows)
    assert stats["teacher_agreement"].item() == pytest.approx(1)
    assert all(right < method.loss(z, rows=rows.roll(i))[0] for i in (1, 2, 3))
    assert right.item() == pytest.approx(0, abs=1e-6) or agree in ("similarities", "both")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"agree": "cosin"}, "Did you mean 'cosine'?"),
        ({"teacher_size": -1}, r"teacher_size must be in 0\.\.4096, not -1"),
        ({"temperature": 0}, r"temperature must be in"),
    ],
)
def test_wrong_settings(settings: dict, message: str):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        DistillSettings(**settings)


# The teacher


def run_of(tmp_path: Path, name: str = "run", **settings: object) -> crlf.Run:
    recipe = Recipe(method="distill", batch_size=4, views=2, epochs=1, **settings)  # type: ignore[arg-type]
    return crlf.pretrain(recipe, out=tmp_path / name, device="cpu")


def test_the_features_are_the_teachers_at_its_own_size(tmp_path: Path, narrow: None, monkeypatch, capsys):
    """Of files, which are read again; row i is image i."""
    seen: list[torch.Tensor] = []
    learn = Distill.learn_from
    monkeypatch.setattr(Distill, "learn_from", lambda self, rows: seen.append(rows) or learn(self, rows))
    images = photos(tmp_path / "photos")
    settings = {"data": str(images), "head": DistillSettings(teacher=teacher())}
    small = crlf.data.ImageSettings(image_size=16)
    run = run_of(tmp_path, **settings, images=small)
    side = timm.get_pretrained_cfg("test_resnet").input_size[-1]
    assert f"12 images of {side} px" in capsys.readouterr().err and run.scores["image_shape"] == [3, 16, 16]
    net = timm.create_model(teacher(), pretrained=True, num_classes=0).eval()
    cfg = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(v)[:, None, None] for v in (cfg.mean, cfg.std))
    whole = crlf.data.load(str(images), None, crlf.data.ImageSettings(image_size=side))[0].images
    with torch.no_grad():
        torch.testing.assert_close(seen[0], net((whole.float() / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    origin = run.scores["teacher"]
    assert origin["encoder"] == "timm:test_resnet" and len(origin["sha256"]) == 64
    run_of(
        tmp_path, "as it is", data=str(images), images=small, head=DistillSettings(teacher=teacher(), teacher_size=16)
    )
    assert "12 images of 16 px" in capsys.readouterr().err and not torch.allclose(seen[1], seen[0])


def test_images_that_are_no_files_are_scaled(tmp_path: Path, narrow: None, capsys):
    np.save(tmp_path / "x.npy", NOISE)
    run_of(tmp_path, "a", data=str(tmp_path / "x.npy"), head=DistillSettings(teacher=teacher()))
    assert "24 images of 32 px" in capsys.readouterr().err
    run_of(tmp_path, "b", data=str(tmp_path / "x.npy"), head=DistillSettings(teacher=teacher(), teacher_size=64))
    assert "24 images of 64 px" in capsys.readouterr().err


def test_a_run_teaches_and_what_was_learned_agrees_with_it(tmp_path: Path, narrow: None):
    """The loss falls, and images come to resemble each other as they do by the teacher."""
    recipe = Recipe(data="shapes", subset=96, batch_size=32, views=2, epochs=1)
    before = crlf.pretrain(recipe, out=tmp_path / "teacher", device="cpu")
    settings = DistillSettings(teacher=str(before.path), hidden=64)
    recipe = Recipe(method="distill", data="shapes", subset=96, batch_size=32, views=2, epochs=24, head=settings)
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    rows = run.log()  # of one batch each, so that they scatter
    agreements = [row["teacher_agreement"] for row in rows]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and np.mean(agreements[-8:]) > np.mean(agreements[:4]) + 0.03


def test_the_starting_weights_teach_where_no_other_does(tmp_path: Path, narrow: None):
    first = crlf.pretrain(
        Recipe(data="shapes", subset=48, batch_size=16, views=2, epochs=1), out=tmp_path / "a", device="cpu"
    )
    start = InitSettings(init=str(first.path))
    run = run_of(tmp_path, data="shapes", subset=48, start=start)
    assert run.scores["teacher"]["source"] == str(first.path) == run.scores["started_from"]["source"]
    more = crlf.pretrain(run.recipe, out=run.path, resume=True, device="cpu")  # nothing is left to do
    assert torch.equal(more.tensors(ENCODER)["stages.0.0.weight"], run.tensors(ENCODER)["stages.0.0.weight"])


def test_a_resumed_run_is_the_same(tmp_path: Path, narrow: None):
    recipe = {"data": "shapes", "subset": 48, "head": DistillSettings(teacher=teacher(), hidden=16)}
    straight = run_of(tmp_path, "straight", **recipe)
    original, count = Distill.loss, [0]

    def stopping(self, z, rows):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return original(self, z, rows)

    Distill.loss = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path, "stopped", **recipe)
    finally:
        Distill.loss = original
    again = Recipe(method="distill", batch_size=4, views=2, epochs=1, **recipe)
    resumed = crlf.pretrain(again, out=tmp_path / "stopped", resume=True, device="cpu")
    one, other = straight.tensors(ENCODER), resumed.tensors(ENCODER)
    assert all(torch.equal(one[name], other[name]) for name in one)


def refused(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> str:
    assert cli.main(["pretrain", *words, "--method", "distill", "--out", str(out), "--device", "cpu"]) == 2
    assert not out.exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_teach_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, path = tmp_path / "run", tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1)}, path)
    fixed = tmp_path / "vit"
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), fixed)
    assert "method 'distill' needs a teacher: --teacher RUN or timm:NAME, or --init" in refused(capsys, out, "shapes")
    assert "weights 'nowhere' do not exist: they must be timm:NAME" in refused(
        capsys, out, "shapes", "--teacher", "nowhere"
    )
    assert "does not name its network" in refused(capsys, out, "shapes", "--teacher", str(path))
    said = refused(capsys, out, "shapes", "--teacher", f"local-dir:{fixed}", "--teacher-size", "30")
    assert (
        "encoder 'timm:test_vit' does not accept 30 × 30 px" in said
        and "error: teacher 'local-dir:" in said
        and "--teacher-size" in said
    )


def test_a_teacher_that_gives_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "crlf.training.teaching.features", lambda net, images, by, side: torch.full((len(images), 4), math.nan)
    )
    with pytest.raises(InputError, match="gives NaN or infinite features: its weights are damaged"):
        run_of(tmp_path, data="shapes", subset=48, head=DistillSettings(teacher=teacher()))


def test_images_in_memory_are_taught_of(tmp_path: Path, narrow: None):
    images = ImageSet(torch.from_numpy(NOISE), None, (), [str(i) for i in range(24)])
    recipe = Recipe(
        method="distill", batch_size=8, views=2, epochs=1, head=DistillSettings(teacher=teacher(), hidden=16)
    )
    run = crlf.pretrain(recipe, data=images, out=tmp_path / "run", device="cpu")
    assert run.scores["method"] == "distill"


def test_features_are_no_part_of_a_checkpoint():
    method = met(Distill(CNN(3, widths=(4, 8, 8), read=2), DistillSettings(hidden=16)), 8)
    assert "features" not in method.state_dict() and len(method.features) == 8
