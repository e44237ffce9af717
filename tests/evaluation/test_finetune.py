"""Fine-tuning and classifying: the right classifier from the right images, and scores that are what they say."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from terminal import PIPES, Terminal, here, refused

import crlf
from crlf import cli, data
from crlf.augmentation import ViewSettings
from crlf.data import PUBLISHED
from crlf.data.files.decode import decode
from crlf.embedding.embed import embed_images, load_encoder
from crlf.errors import InputError
from crlf.evaluation import classifier, finetune, labelled
from crlf.evaluation.calibration import temperature
from crlf.evaluation.finetune import mild, score, tune
from crlf.evaluation.labelled import some
from crlf.evaluation.logistic_regression import choose_c, fit_linear
from crlf.recipe import Recipe
from crlf.runs.run import CLASSIFIER_WEIGHTS, ENCODER, Run, claim

TINY = Recipe(data="shapes", subset=256, batch_size=64, views=2, epochs=1, normalisation=PUBLISHED["shapes"])
SHAPE = (3, 32, 32)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return crlf.pretrain(TINY, out=tmp_path_factory.mktemp("run") / "run", device="cpu")


def put(folder: Path, each: int, first: int = 0, classes: tuple[str, ...] = ("disc", "ring", "square")) -> Path:
    """Shapes as PNG files in class folders."""
    train, _ = data.load("shapes")
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = (train.labels == train.classes.index(name)).nonzero()[:, 0][first : first + each]
        for row in rows.tolist():
            Image.fromarray(train.images[row].permute(1, 2, 0).numpy()).save(folder / name / f"{row:04}.png")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("shapes") / "Grüße, = und ; 🐈", 40)


@pytest.fixture(scope="module")
def linear(run: Run, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("linear") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRLF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return crlf.finetune(run, str(shapes), mode="linear", out=out, device="cpu")


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


# What a classifier is


def test_a_linear_classifier_is_scikit_learns_on_the_runs_embeddings(run: Run, shapes: Path, linear: Path):
    """Its head holds the standardisation and the probe; the encoder is the run's, weight for weight."""
    train, test = data.load(str(shapes), None, data.ImageSettings(image_size=32, hold_out=0.1))
    encoder = load_encoder(run, TINY, torch.Size(SHAPE))
    x, z = (embed_images(encoder, part.images, TINY.normalisation) for part in (train, test))
    c = choose_c(x, train.labels.numpy()).c  # scores.json says how
    loaded = classifier.load(linear)
    ours = classifier.probabilities(loaded.model, test.images, TINY.normalisation)
    probe = fit_linear(x, train.labels.numpy(), c)
    assert np.allclose(ours, probe.logits(z).softmax(dim=1), atol=1e-4)
    scaler = StandardScaler().fit(x.astype(float))
    scaler.scale_ = np.full(x.shape[1], scaler.var_.mean() ** 0.5)  # few images have one scale
    reference = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaler.transform(x), train.labels)
    theirs = reference.predict_proba(scaler.transform(z))
    assert np.allclose(ours, theirs, atol=0.02)  # of 108 images with 1,792 numbers each: the optimum is flat
    assert loaded.classes == ["disc", "ring", "square"] and loaded.shape == SHAPE
    weights = run.tensors(ENCODER)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.encoder.state_dict().items())
    assert scores(linear)["accuracy"] == pytest.approx((ours.argmax(1) == test.labels.numpy()).mean())


def test_scores_are_those_of_the_held_out_images(linear: Path):
    found = scores(linear)
    assert found["train_images"] == 108 and found["test_images"] == 12 and found["chance"] == pytest.approx(1 / 3)
    assert 0 <= found["calibration_error"] <= 1 and 1 / 3 <= found["confidence"] <= 1
    right = round(found["accuracy"] * 12)
    low, high = found["accuracy_interval"]
    p, z = right / 12, 1.959964  # Wilson's interval, written out
    middle, width = p + z * z / 24, z * np.sqrt(p * (1 - p) / 12 + z * z / 576)
    assert (low, high) == pytest.approx(((middle - width) / (1 + z * z / 12), (middle + width) / (1 + z * z / 12)))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(list(found["class_accuracy"].values())))
    assert "108 labelled images" in found["protocol"] and "held out" in found["protocol"]


def test_balanced_accuracy_is_the_mean_of_the_classes(monkeypatch: pytest.MonkeyPatch):
    """Six images of a class, all right, two of another, one right, and none of a third."""
    labels, said = np.array([0] * 6 + [1] * 2), np.array([0] * 6 + [1, 2])
    monkeypatch.setattr(classifier, "probabilities", lambda *arguments: np.eye(3)[said])
    nothing = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    images = labelled.Labelled(nothing, labels[:0], nothing, labels, ("a", "b", "c"), "")
    found = score(torch.nn.Identity(), images, TINY)
    assert found["accuracy"] == 7 / 8 and found["balanced_accuracy"] == 3 / 4
    assert found["class_accuracy"] == {"a": 1, "b": 0.5}


@pytest.mark.long
def test_all_weights_move_when_all_are_tuned_and_the_same_seed_gives_the_same(run: Run, shapes: Path, tmp_path: Path):
    full = {"mode": "full", "epochs": 2, "batch_size": 8, "labels_per_class": 8, "device": "cpu"}
    one, same, other = (
        crlf.finetune(run, str(shapes), out=tmp_path / name, seed=seed, **full)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    first, again, third = (Run(folder).tensors(CLASSIFIER_WEIGHTS) for folder in (one, same, other))
    before = run.tensors(ENCODER)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], third["head.weight"])
    moved = [name for name, value in before.items() if not torch.equal(value, first[f"encoder.{name}"])]
    assert set(moved) == set(before)
    assert {"accuracy", "linear_accuracy"} <= set(scores(one)) and "6 steps of 8" in scores(one)["protocol"]
    assert "which fits 24 held-out labels best" in scores(one)["protocol"]
    assert 1 / 20 <= scores(one)["temperature"] <= 20 and scores(one)["temperature"] == scores(same)["temperature"]


def test_the_temperature_is_what_the_logits_were_multiplied_by():
    """Labels drawn with the probabilities of logits, of which a multiple is told."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 5))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # so drawn with softmax's probabilities
    for sure in (0.5, 1.0, 3.0):
        p = torch.from_numpy(sure * logits).softmax(dim=1).numpy()
        assert temperature(p, labels) == pytest.approx(sure, rel=0.03)


def test_cooling_changes_no_class_and_every_confidence(linear: Path):
    loaded = classifier.load(linear)
    pixels = torch.randint(0, 256, (9, *SHAPE), dtype=torch.uint8)
    before = classifier.probabilities(loaded.model, pixels, TINY.normalisation)
    loaded.model.cool(2.0)
    after = classifier.probabilities(loaded.model, pixels, TINY.normalisation)
    assert np.array_equal(before.argmax(1), after.argmax(1))
    expected = before**0.5 / (before**0.5).sum(axis=1, keepdims=True)  # softmax of half the logits
    assert np.allclose(after, expected, atol=1e-5)


def test_one_image_of_each_class_tells_no_temperature(run: Run, shapes: Path, tmp_path: Path):
    full = {"mode": "full", "epochs": 1, "labels_per_class": 1, "device": "cpu"}
    found = scores(crlf.finetune(run, str(shapes), out=tmp_path / "c", **full))
    assert found["temperature"] == 1 and "not calibrated: there is one image of each class" in found["protocol"]


def test_what_was_held_out_to_tell_the_temperature_was_not_learned(run: Run, shapes: Path, monkeypatch):
    """And all labels are learned in the end."""
    images = labelled.read(str(shapes), None, SHAPE, labelled.settings_of(run.recipe, str(shapes)))
    rows, learned, told = np.arange(0, len(images.train), 2), [], []
    probabilities = classifier.probabilities
    monkeypatch.setattr(
        finetune, "tune", lambda model, images, rows, *rest: (model.eval(), learned.append(rows), "")[-1]
    )

    def telling(model: classifier.Classifier, pixels: torch.Tensor, by: object) -> np.ndarray:
        told.append(pixels)
        return probabilities(model, pixels, by)

    monkeypatch.setattr(classifier, "probabilities", telling)
    model = classifier.build(TINY, SHAPE, len(images.classes))
    finetune.cooling(model, run.tensors(ENCODER), images, rows, TINY, 1, 1e-3, 8, 0)
    assert len(learned) == len(told) and sum(map(len, told)) >= finetune.TOLD
    for kept, pixels in zip(learned, told, strict=True):
        held = np.setdiff1d(rows, kept)
        assert torch.equal(images.train[torch.from_numpy(held)], pixels) and len(kept) + len(pixels) == len(rows)


def test_mild_views_keep_half_of_the_image_and_its_colours():
    views = mild(ViewSettings(crop_min=0.08, flip=0.3, blur=1.0, resolution=0.5))
    assert (views.crop_min, views.flip, views.resolution) == (0.5, 0.3, 0.5)
    assert (views.jitter, views.grayscale, views.blur) == (0, 0, 0)
    assert mild(ViewSettings(crop_min=0.7)).crop_min == 0.7
    small = mild(ViewSettings(crop_min=0.1, crop_max=0.3))
    assert (small.crop_min, small.crop_max) == (0.5, 1.0)


@pytest.mark.long
def test_tuning_learns_by_itself(run: Run):
    """From a head of zeros, which knows nothing, in 150 steps."""
    train, test = data.load("shapes")
    found = labelled.Labelled(
        train.images[:600], train.labels[:600].numpy(), test.images, test.labels.numpy(), train.classes, ""
    )
    model = classifier.build(TINY, SHAPE, len(train.classes))
    model.encoder.load_state_dict(run.tensors(ENCODER))
    for weight in model.head.parameters():
        torch.nn.init.zeros_(weight)
    tune(model, found, np.arange(600), TINY, epochs=8, lr=3e-3, batch=32, seed=0)
    assert score(model, found, TINY)["accuracy"] > 0.5  # chance is 0.13


def test_training_mode_and_gradients_are_left_behind(linear: Path):
    model = classifier.load(linear).model
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_weights_load_without_pickle_and_the_run_stays_as_it_is(run: Run, shapes: Path):
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    folder = crlf.finetune(run, str(shapes), mode="linear", labels_per_class=5, device="cpu")
    assert folder == run.path / "classifier"
    assert {path.name for path in folder.iterdir()} == {*classifier.FILES}
    assert torch.load(folder / "classifier.pth", weights_only=True)["head.weight"].shape[0] == 3
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert crlf.classify(run, [str(next((shapes / "ring").iterdir()))])[0][1] in ("disc", "ring", "square")
    shutil.rmtree(folder)


# Which images


@pytest.mark.parametrize(
    ("per_class", "fraction", "expected"),
    [(0, 1.0, [10, 20, 30]), (4, 1.0, [4, 4, 4]), (0, 0.04, [1, 1, 1]), (0, 0.5, [5, 10, 15])],
)
def test_some_labels_are_drawn_class_by_class(per_class: int, fraction: float, expected: list[int]):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 20, 30]))
    rows = some(labels, "abc", per_class, fraction, seed=0)
    assert np.bincount(labels[rows]).tolist() == expected and len(set(rows)) == len(rows)
    assert np.array_equal(rows, some(labels, "abc", per_class, fraction, seed=0))
    if expected[0] < 10:
        assert not np.array_equal(rows, some(labels, "abc", per_class, fraction, seed=1))


def test_other_images_can_be_scored_on_in_any_order_of_classes(run: Run, tmp_path: Path, linear: Path):
    train = put(tmp_path / "train", 20)
    test = put(tmp_path / "test", 1, first=50, classes=("square", "disc"))  # one of each: none could be held out
    folder = crlf.finetune(run, str(train), test=str(test), mode="linear", out=tmp_path / "c", device="cpu")
    found = scores(folder)
    assert found["test_images"] == 2 and set(found["class_accuracy"]) == {"disc", "square"}
    rows = {file: name for file, name, _ in crlf.classify(folder, [str(test)])}
    right = np.mean([Path(file).parent.name == name for file, name in rows.items()])
    assert found["accuracy"] == right


def test_a_table_of_images_and_labels(run: Run, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(put(tmp_path / "f", 20).rglob("*.png"))
    columns = {"picture": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    folder = crlf.finetune(run, str(tmp_path / "a.parquet"), mode="linear", out=tmp_path / "c", device="cpu")
    assert json.loads((folder / "classes.json").read_text()) == ["disc", "ring", "square"]


# Classifying


def test_the_table_of_classes(linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Names that a spreadsheet would take for formulas are escaped, and what is no image is told with its reason."""
    source = sorted(put(tmp_path / "in", 2).rglob("*.png"))
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.png", '@x, "y".png', "Grüße 🐈.png", f"{'n' * 240}.png"):
        shutil.copy(source[0], name)
    Path("+broken.png").write_bytes(b"text")
    names = ["=1+1.png", '@x, "y".png', "Grüße 🐈.png", f"{'n' * 240}.png", "+broken.png", "in"]
    assert cli.main(["classify", str(linear), *names, "--out", "classes.csv", "--device", "cpu"]) == 0
    rows = list(csv.reader(io.StringIO(Path("classes.csv").read_text(encoding="utf-8"))))
    assert rows[0] == ["file", "class", "probability", "skipped"]
    assert [row[0] for row in rows[1:5]] == ["'=1+1.png", '\'@x, "y".png', "Grüße 🐈.png", f"{'n' * 240}.png"]
    assert rows[5][:3] == ["'+broken.png", "", ""] and rows[5][3].startswith("it is no JPEG")
    assert [row[0] for row in rows[6:]] == [str(path.relative_to(tmp_path)) for path in source]
    loaded = classifier.load(linear)
    pixels = torch.from_numpy(np.stack([decode(path.read_bytes(), 32) for path in source]))
    expected = classifier.probabilities(loaded.model, pixels, loaded.recipe.normalisation)
    for row, p in zip(rows[6:], expected, strict=True):
        assert row[1] == loaded.classes[p.argmax()] and float(row[2]) == pytest.approx(p.max(), abs=1e-4)
    assert capsys.readouterr().out == ""
    assert cli.main(["classify", str(linear), "Grüße 🐈.png", "--device", "cpu"]) == 0
    printed = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    (head, (file, name, p, why)) = printed
    assert head == rows[0] and [file, name, why] == [rows[3][0], rows[3][1], rows[3][3]]
    assert float(p) == pytest.approx(float(rows[3][2]), abs=2e-4)  # another batch rounds its products otherwise


def test_a_name_does_not_steer_the_terminal(linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal; a file or a pipe gets the name as it is."""
    shutil.copy(next(put(tmp_path / "in", 1).rglob("*.png")), tmp_path / "\x1b[31mred.png")
    monkeypatch.chdir(tmp_path)
    for terminal, name in ((Terminal(80), "\\x1b[31mred.png,"), (PIPES, "\x1b[31mred.png,")):
        code, said = here(terminal, "classify", str(linear), "\x1b[31mred.png", "--device", "cpu")
        assert code == 0 and f"\n{name}" in said


def test_a_batch_is_as_one_by_one(linear: Path, shapes: Path):
    together = crlf.classify(linear, [str(shapes)])
    apart = crlf.classify(linear, [str(shapes)], batch_size=7)
    assert [row[:2] for row in together] == [row[:2] for row in apart] and len(together) == 120
    assert np.allclose([row[2] for row in together], [row[2] for row in apart], atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["shapes", "--mode", "half"], "--mode"),
        (["shapes", "--fraction", "0"], "fraction must be above 0 and at most 1, not 0"),
        (["shapes", "--fraction", "nan"], "fraction must be above 0"),
        (["shapes", "--labels-per-class", "-1"], "labels_per_class must be 0 or more, not -1"),
        (
            ["shapes", "--labels-per-class", "5", "--fraction", "0.5"],
            "labels_per_class and fraction cannot be combined",
        ),
        (["few", "--labels-per-class", "9"], "labels_per_class must be at most the 3 images of class 'disc', not 9"),
        (["shapes", "--epochs", "-1"], "epochs must be in 0..100000, not -1"),
        (["shapes", "--lr", "inf"], "lr must be above 0 and finite, not inf"),
        (["shapes", "--batch-size", "0"], "batch_size must be in 1..65536, not 0"),
        (["shapes", "--seed", "-1"], "seed must be in"),
        (["shapes", "--device", "cdua"], "Did you mean 'cuda'?"),
        (
            ["few", "--mode", "full", "--epochs", "3", "--lr", "1e30"],
            "fine-tuning diverged: try an --lr below 1e+30",
        ),
        (["nowhere/x"], "nowhere/x' does not exist"),
        (["flat"], "has no labels: its images must be in one folder per class"),
        (["flat.npy"], "has no labels"),
        (["cifer10"], "Did you mean 'cifar10'?"),
        (["few", "--test", "strange"], "has the class 'cross', which 'few' lacks"),
        (["few", "--test", "flat"], "test 'flat' has no labels"),
        (["few", "--test", "nowhere/x"], "nowhere/x' does not exist"),
        (["few", "--out", "taken"], "output folder 'taken' holds a classifier: --overwrite replaces it"),
        (["few", "--out", "run"], "output folder 'run' holds a run: a classifier needs its own folder"),
        (["few", "--out", "flat.npy/c"], "output folder 'flat.npy/c' cannot be created: 'flat.npy' is a file"),
        ([], "DATA is missing"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, run: Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, "run")
    put(Path("few"), 4)
    put(Path("strange"), 4, classes=("cross", "disc"))
    shutil.copytree("few/disc", "flat")
    np.save("flat.npy", np.zeros((9, 32, 32), np.uint8))
    Path("taken").mkdir()
    Path("taken/classifier.json").write_text("{}")
    before = sorted(str(path) for path in Path(".").rglob("*"))
    line = refused("finetune", "run", *arguments, alone=False)
    assert reason in line and line.startswith("crlf finetune: error: ")
    assert sorted(str(path) for path in Path(".").rglob("*")) == before, "nothing is half-written"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["c"], "IMAGES is missing"),
        (["c", "nowhere.png"], "image 'nowhere.png' does not exist"),
        (["c", "text"], "none of 1 files is an image; the first is 'text': it is no JPEG"),
        (["c", "empty"], "data folder 'empty' is empty"),
        (["empty", "a.png"], "folder 'empty' holds no run and no classifier: `crlf finetune` makes one"),
        (["nowhere", "a.png"], "folder 'nowhere' does not exist"),
        (["c", "a.png", "--out", "text"], "output file 'text' already exists: --overwrite replaces it"),
        (["c", "a.png", "--out", "no/t.csv"], "'no/t.csv' cannot be written"),
        (["c", "a.png", "--batch-size", "0"], "batch_size must be 1 or more, not 0"),
        (["bad json", "a.png"], "'bad json/classifier.json' cannot be read as JSON"),
        (["bad recipe", "a.png"], "classifier 'bad recipe' is damaged"),
        (["bad classes", "a.png"], "must hold a JSON list, not a dict"),
        (["fewer classes", "a.png"], "classifier 'fewer classes' is damaged"),
        (["bad weights", "a.png"], "is damaged or holds more than tensors"),
    ],
)
def test_classifying_bad_input_is_one_line(
    arguments: list[str], reason: str, linear: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("c", "bad json", "bad recipe", "bad classes", "fewer classes", "bad weights"):
        shutil.copytree(linear, name)
    Path("bad json/classifier.json").write_text("{")
    Path("bad recipe/classifier.json").write_text('{"image_shape": 3}')
    Path("bad classes/classes.json").write_text("{}")
    Path("fewer classes/classes.json").write_text('["a"]')
    Path("bad weights/classifier.pth").write_bytes(b"PK")
    Path("empty").mkdir()
    Path("text").write_text("hi")
    Image.new("RGB", (40, 40)).save("a.png")
    line = refused("classify", *arguments, "--device", "cpu")
    assert reason in line and line.startswith("crlf classify: error: ")
    assert Path("text").read_text() == "hi"


def test_a_data_set_of_another_size(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = data.ImageSet(torch.zeros(9, 3, 16, 16, dtype=torch.uint8), torch.arange(9) % 2, ("a", "b"), ["x"] * 9)
    monkeypatch.setitem(data.SOURCES, "shapes", lambda data_dir: (small, small))
    with pytest.raises(
        InputError, match="images of 'shapes' must be 3 × 32 × 32 like those of the run, not 3 × 16 × 16"
    ):
        crlf.finetune(run, "shapes", out=tmp_path / "c", device="cpu")


def test_a_run_that_is_not_trained(tmp_path: Path):
    claim(tmp_path / "run", TINY.to_dict(), resume=False, overwrite=False)
    with pytest.raises(InputError, match=r"has no image_shape"):
        crlf.finetune(tmp_path / "run", "shapes", device="cpu")
