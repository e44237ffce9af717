"""A trial: who takes part, how they are judged, what is advised, and that it can be gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import terminal
import timm
import torch
from tiny_images import encoded, pixels

import crlf
from crlf import cli
from crlf.augmentation import ViewSettings
from crlf.data import ImageSet
from crlf.encoders import InitSettings
from crlf.evaluation.probe import probe
from crlf.pipelines import advice, judging, trial
from crlf.pipelines.advice import curve, more_images, verdict
from crlf.pipelines.contestants import Contestant, Images, Place, called, contestants, own, recipe_of, run_of, shown
from crlf.pipelines.judging import Difference, Judged, difference
from crlf.recipe import Recipe
from crlf.runs.run import ENCODER

SCRATCH = Contestant("SimCLR from scratch", "scratch")
PIXELS, MODEL = Contestant("raw pixels", "pixels"), Contestant("m as it is", "model", "m")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), folder, model_config={"license": "mit"})
    return f"local-dir:{folder}"


def photos(folder: Path, count: int = 45, classes: tuple[str, ...] = ("cat", "cow", "dog")) -> Path:
    for seed in range(count):
        place = folder / classes[seed % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    return folder


def place(data: Path, out: Path, *models: str, **settings: object) -> Place:
    return Place(Recipe(data=str(data), minutes=1, **settings), models, out, None, "cpu")  # type: ignore[arg-type]


# Who takes part


def test_all_take_part_that_can(tmp_path: Path):
    few = place(photos(tmp_path / "photos"), tmp_path / "out", "local-dir:/models/m", "timm:x")
    kinds = [(one.kind, one.source) for one in contestants(few, 100)]
    models = ["local-dir:/models/m", "timm:x"]
    assert kinds == [
        ("pixels", ""), ("untrained", ""), ("model", models[0]), ("model", models[1]), ("scratch", ""), ("share", ""),
        ("start", models[0]), ("distilled", models[0]),
    ]  # fmt: skip
    shares = [one.share for one in contestants(few, 1000) if one.kind == "share"]
    assert shares == [0.3, 0.1] and not [one for one in contestants(few, 60) if one.kind == "share"]
    assert called(models[0]) == "m" and called("timm:x") == "timm:x" and called("runs/before") == "before"
    assert len({one.folder for one in contestants(few, 1000)}) == 9


def test_each_is_trained_as_it_says(tmp_path: Path, model: str):
    views = ViewSettings(local_views=2)
    start = InitSettings(init=model, freeze=1)
    here = place(photos(tmp_path / "photos"), tmp_path / "out", model, start=start, augmentation=views)
    recipes = {one.kind: recipe_of(one, here, 0.5) for one in contestants(here, 60) if one.kind in ("scratch", "start")}
    assert recipes["scratch"].start.init == "" and recipes["scratch"].minutes == 0.5
    assert recipes["start"].start == here.recipe.start and recipes["start"].method == "simclr"
    taught = recipe_of(Contestant("d", "distilled", model), here, 0.5)
    assert (taught.method, taught.head.teacher, taught.start.init) == ("distill", model, "")
    assert taught.augmentation.local_views == 0 and recipes["scratch"].augmentation.local_views == 2
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    taught = recipe_of(Contestant("d", "distilled", str(file)), here, 0.5)
    assert taught.head.teacher == str(here.out / Contestant("weights.pth as it is", "model").folder)
    given = recipe_of(Contestant("m", "model", model), here, 0.5)
    assert given.as_given and given.encoder == "timm:test_resnet"
    assert own(here.recipe).encoder == "cnn" and own(here.recipe).start == InitSettings()


def test_the_rows_are_those_of_the_run(tmp_path: Path, model: str, narrow: None):
    here = place(photos(tmp_path / "photos"), tmp_path / "out", model)
    one = Contestant("m as it is", "model", model)
    found = shown(one, here, Images(here))
    run = crlf.Run(here.out / one.folder)
    crlf.embed(run, device="cpu")
    np.testing.assert_allclose(found.train, run.array("train_emb.npy"), rtol=1e-5, atol=1e-6)
    assert found.test is found.train and len(found.images) == 45


def test_a_share_learns_from_some_and_all_are_embedded(tmp_path: Path, narrow: None, monkeypatch: pytest.MonkeyPatch):
    here, seen = place(photos(tmp_path / "photos", 90), tmp_path / "out"), []
    original = crlf.training.pretrain.pretrain
    monkeypatch.setattr(
        "crlf.pipelines.contestants.pretrain",
        lambda *args, **named: seen.append(named["data"]) or original(*args, **named),
    )
    images = Images(here)
    for share in (0.3, 0.6):
        found = shown(Contestant(f"share {share}", "share", share=share), here, images, 0.02)
        assert len(found.train) == 90 and np.isfinite(found.train).all()
    fewer, more = (set(part.ids) for part in seen)
    assert len(fewer) == 27 and len(more) == 54 and fewer < more and all(part.labels is None for part in seen)
    run = crlf.Run(here.out / "share-0-3")
    assert run.recipe.batch_size == 27 and run.recipe.augmentation.resolution == 0.75


def test_a_finished_run_is_not_trained_again(tmp_path: Path, narrow: None):
    here = place(photos(tmp_path / "photos"), tmp_path / "out")
    images = Images(here)
    first = run_of(SCRATCH, here, images, 0.02).file(ENCODER).stat().st_mtime_ns
    assert run_of(SCRATCH, here, images, 0.02).file(ENCODER).stat().st_mtime_ns == first


# How they are judged


def test_a_difference_by_hand():
    right, other = np.array([1.0, 1, 1, 0, np.nan]), np.array([0.0, 1, 0, 0, 1])
    found = difference(right, other)
    half = 1.96 * np.std([1, 0, 1, 0], ddof=1) / 2
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert (Difference(1, 0.1, 2).sign, Difference(-1, -2, -0.1).sign, Difference(0, -1, 1).sign) == (1, -1, 0)


def test_the_marks_are_those_of_the_probes(tmp_path: Path, narrow: None):
    """The same linear probe and kNN as `crlf probe`, where all images are tested."""
    here = place(photos(tmp_path / "photos"), tmp_path / "out")
    images = Images(here)
    found = shown(SCRATCH, here, images, 0.02)
    train, test = images.of(own(here.recipe))
    marks = judging.judge(found, train, test, judging.folds(train, test))
    run = crlf.Run(here.out / SCRATCH.folder)
    crlf.embed(run, device="cpu")
    scores = probe(run, probes="linear,knn,crops", device="cpu")
    assert marks.mean("linear") == pytest.approx(scores["linear_accuracy"])
    assert marks.mean("knn") == pytest.approx(scores["knn_accuracy"])
    assert marks.measures["crops"] == pytest.approx(scores["crops_accuracy"])
    assert marks.score == pytest.approx(np.mean([marks.mean(name) for name in ("linear", "knn", "few")]))


def test_few_labels_are_tested_on_all_others():
    """A class has so few images that one of them alone is left to be asked about."""
    labels = np.repeat([0, 1], [4, 30])
    rows = (np.random.default_rng(0).normal(size=(34, 5)) + 9 * labels[:, None]).astype(np.float32)
    embedded = judging.Embedded(rows, labels, rows, labels, folds=np.arange(34) % 5)
    found = judging.few(embedded)
    assert len(found) == 34 and np.nanmean(found) == 1 and np.isnan(found[:4]).sum() <= 3


def test_copies_stand_in_one_fold():
    labels = torch.arange(40) % 2
    pixels_ = torch.randint(0, 255, (40, 3, 4, 4), dtype=torch.uint8)
    pixels_[20:30] = pixels_[:10]
    images = ImageSet(pixels_, labels, ("a", "b"), [str(i) for i in range(40)])
    by = judging.folds(images, images)
    assert by is not None and (by[20:30] == by[:10]).all()
    assert judging.folds(images, images.first(10)) is None


# What is advised


def judged(linear: float, few: float | None = None, n: int = 400) -> Judged:
    """Marks with these accuracies, each right on the first of so many images."""
    rows = {"linear": linear, "knn": linear, "few": linear if few is None else few}
    return Judged({name: (np.arange(n) < round(n * value)).astype(float) for name, value in rows.items()}, {})


@pytest.mark.parametrize(
    "plain, trained, train, best, what",
    [
        (judged(0.5), judged(0.6), True, SCRATCH, "Train: SimCLR from scratch is better"),
        (judged(0.6), judged(0.5), False, MODEL, "Do not train: m as it is is better"),
        (judged(0.6), judged(0.601), None, MODEL, "Training makes no clear difference: use m as it is"),
        (judged(0.6, 0.3), judged(0.5, 0.9), None, SCRATCH, "It depends on your use"),
    ],
)
def test_the_advice_follows_the_marks(plain: Judged, trained: Judged, train: bool | None, best: Contestant, what: str):
    found = verdict({PIXELS: judged(0.1), MODEL: plain, SCRATCH: trained})
    assert (found.train, found.best, found.plain, found.trained) == (train, best, MODEL, SCRATCH)
    assert found.what.startswith(what) and found.why.startswith("SimCLR from scratch minus m as it is: linear ")


def test_what_learned_from_a_share_is_no_advice():
    share = Contestant("30 %", "share", share=0.3)
    found = verdict({PIXELS: judged(0.1), SCRATCH: judged(0.4), share: judged(0.9)})
    assert found.trained is SCRATCH and found.best is SCRATCH


@pytest.mark.parametrize(
    "fewer, whole, said",
    [(0.4, 0.5, "would likely help"), (0.5, 0.4, "would not help"), (0.5, 0.501, "It is unclear whether")],
)
def test_whether_more_images_help_is_the_last_step_of_the_curve(fewer: float, whole: float, said: str):
    marks = {
        Contestant("30 %", "share", share=0.3): judged(fewer), SCRATCH: judged(whole),
        Contestant("10 %", "share", share=0.1): judged(0.9),
    }  # fmt: skip
    assert [share for share, _ in curve(marks)] == [0.1, 0.3, 1]
    assert said in more_images(marks) and "from 30% of the images" in more_images(marks)
    assert more_images({SCRATCH: judged(0.5)}) == ""


def test_signs_are_those_of_print():
    assert advice.points(Difference(-0.0312, -0.05, 0.011)) == "−3.1 points (−5.0 to 1.1)"


# The whole


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, narrow: None) -> None:
    monkeypatch.setattr(trial, "LEAST", 0.01)


def command(*words: str) -> int:
    return cli.main(["trial", *words, "--minutes", "0.01", "--device", "cpu"])


@pytest.mark.long
def test_a_trial_from_images_to_a_page(model: str, tmp_path: Path, short: None, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), 70)
    assert command("photos", "--model", model, "--out", "t") == 0
    said, told = capsys.readouterr(), json.loads(Path("t/trial.json").read_text())
    names = ["raw pixels", "untrained", "tiny as it is", "SimCLR from scratch"]
    names += ["SimCLR from scratch on 30% of the images", "SimCLR from tiny", "distilled from tiny"]
    assert list(told["marks"]) == names and told["best"] in names and told["advice"] in said.out
    assert all(name in said.out for name in names) and "nan" not in said.out and "Traceback" not in said.err
    page = Path("t/trial.html").read_text()
    assert all(name in page for name in names) and told["advice"].replace("'", "&#39;") in page
    assert '"Segoe UI"' in page and "&#34;" not in page.partition("</style>")[0]
    assert page.count('<div class="track">') == 3 * 6 and page.count('<figure class="contest">') == 3
    assert page.count("<tr") == 8 and page.count('class="best"') == 1 and "data:image/png" in page
    assert not re.search(r"https?:|<script|url\((?!data:)", page)
    next_line = said.out.splitlines()[-1]
    assert next_line.startswith("next: crlf ")
    runs = [one for one in Path("t").iterdir() if (one / ENCODER).is_file()]
    assert len(runs) == 5

    # it goes on where it stopped, and measures nothing twice
    del told["marks"]["distilled from tiny"], told["advice"]
    Path("t/trial.json").write_text(json.dumps(told))
    assert command("photos", "--model", model, "--out", "t", "--resume") == 0
    again, err = json.loads(Path("t/trial.json").read_text()), capsys.readouterr().err
    assert "7/7: distilled from tiny" in err and "6/7" not in err and list(again["marks"]) == names


def test_without_labels(tmp_path: Path, short: None, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), 30, ())
    assert command("photos") == 0
    said, told = capsys.readouterr().out, json.loads(Path("trial_output/trial.json").read_text())
    assert set(told["marks"]["raw pixels"]["right"]) == {"crops"} and "finding an image by its crop" in said
    assert "The images have no labels" in Path("trial_output/trial.html").read_text().replace("\n", " ")


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), 12)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("old").mkdir()
    Path("old/trial.json").write_text(json.dumps({"recipe": {}, "models": []}))
    for words, said in (
        ([], "DATA is missing"),
        (["photos", "--model", "nowhere"], "weights 'nowhere' do not exist"),
        (["nowhere"], "data set 'nowhere' is not known"),
        (["photos", "--out", "full"], "output folder 'full' is not empty and holds no trial"),
        (["photos", "--out", "old"], "output folder 'old' holds a trial: continue it with --resume"),
        (["photos", "--out", "old", "--resume"], "the trial in 'old' has different settings (recipe)"),
    ):
        assert said in terminal.refused("trial", *words, alone=False), words
    assert sorted(one.name for one in tmp_path.iterdir()) == ["full", "old", "photos"]
