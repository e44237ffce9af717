"""Figures: every one draws, says the run's own numbers, and cuts nothing off; its pixels are a function of the run."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score
from sklearn.neighbors import KNeighborsClassifier

from crlf import figures, runs
from crlf.errors import InputError
from crlf.figures import FIGURES, draw
from crlf.methods.simclr import nt_xent_views
from crlf.runs import Run

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = ("<script>alert(1)</script>", "$\\frac{", 'a"b\nc & d', "日本語", "e\ud800f", "")


def fake_health(epoch: float) -> dict[str, object]:
    """What a look at the features logs, as `crlf.health.examine` gives it."""
    numbers = {"rankme": 40 + 9 * epoch, "alignment": 1 / epoch, "uniformity": -epoch, "spread": 0.3 * epoch}
    both = {f"{place}_{key}": value / k for k, place in ((1, "h"), (2, "z")) for key, value in numbers.items()}
    counts = [i * i for i in range(20)]
    histograms = {"positive_histogram": counts, "negative_histogram": counts[::-1]}
    return {**both, **histograms, "h_spectrum": [1.0, 0.5, 0.3 / epoch, 0.1, 0.01, 0.0]}


def fake_run(path: Path, names: tuple[str, ...] = CIFAR, n: int = 100, views: int = 2, side: int = 8) -> Run:
    """A run folder as the stages leave it: n test images in one tight cluster a class, 9 of 10 predicted well."""
    random = np.random.default_rng(0)
    K = len(names)
    labels = np.arange(n) % K
    centres = 6 * random.normal(size=(K, 12))
    run = Run(path)
    path.mkdir(parents=True, exist_ok=True)
    recipe = {"method": "simclr", "encoder": "cnn", "data": "cifar10", "epochs": 3, "batch_size": 32, "views": views}
    sections = {"augmentation": {"crop_min": 0.2, "flip": 0.5, "blur": 0.0}, "head": {"temperature": 0.25}}
    runs.write_json(run.file(runs.RECIPE), {**recipe, "seed": 7, **sections})
    rows = [{"step": i, "epoch": i / 10, "loss": 4 - math.log(i) / 3, "lr": 0.01} for i in range(2, 31, 2)]
    for row in rows:
        if row["step"] % 10 == 0:
            row.update(fake_health(row["epoch"]))
    run.file(runs.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs.save_array(run.file(runs.LOSS), np.array([3.412, 3.123, 2.918]))
    runs.save_array(run.file("test_emb.npy"), (centres[labels] + random.normal(size=(n, 12))).astype(np.float32))
    runs.save_array(run.file("test_lbl.npy"), labels)
    predicted = np.where(random.random(n) < 0.9, labels, random.integers(0, K, n))
    runs.save_array(run.file("test_pred.npy"), predicted)
    runs.write_json(run.file(runs.CLASSES), list(names))
    runs.save_array(run.file(runs.VIEWS), random.integers(0, 256, (10, 1 + views, 3, side, side), dtype=np.uint8))
    run.update_scores(knn_accuracy=0.876, chance=0.123, train_seconds=83.0, epochs=3)
    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fake_run(tmp_path_factory.mktemp("tiny"))


def title(name: str, run: Run) -> str:
    return FIGURES[name](run).get_suptitle()


# Every figure of the table


def test_the_table_is_the_run_folders():
    assert tuple(f"{name}.png" for name in FIGURES) == runs.FIGURES


def test_draw_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    assert draw(run) == [run.file(name) for name in runs.FIGURES]
    for path in draw(str(tmp_path)):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
            assert len(np.unique(np.asarray(image))) > 20, "an empty picture"
    assert run.scores["draw_seconds"] > 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_run_gives_the_same_bytes_whatever_the_users_style(name: str, tiny: Run):
    before = dict(matplotlib.rcParams)
    first = figures.png(FIGURES[name](tiny))
    assert dict(matplotlib.rcParams) == before, "a figure changed the settings of its user"
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 20, "axes.grid": True, "savefig.dpi": 30}):
        assert figures.png(FIGURES[name](tiny)) == first


@pytest.mark.parametrize("name", FIGURES)
def test_the_png_describes_itself(name: str, tiny: Run):
    figure = FIGURES[name](tiny)
    with Image.open(io.BytesIO(figures.png(figure))) as image:
        text = image.info
    assert text["Title"] == figure.get_suptitle()
    assert text["Description"].startswith(text["Title"] + ". ")
    assert "seed 7" in text["Description"] and "\n" not in text["Description"]
    assert "Software" not in text


# Nothing cut off, nothing overlapping


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a figure really draws; a tick outside the axes has a label that is not drawn."""
    seen: list[Text] = []
    original = Text.draw

    def noting(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        original(self, renderer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, figures.styled():
        figure.canvas.draw()  # the layout settles
        patch.setattr(Text, "draw", noting)
        figure.canvas.draw()
    return seen


def faults(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that leave the figure, and pairs of texts that overlap by more than a pixel."""
    texts = drawn_texts(figure, monkeypatch)
    assert texts
    boxes = [text.get_window_extent() for text in texts]
    page = figure.bbox
    found = [
        f"{text.get_text()!r} is cut off"
        for text, box in zip(texts, boxes, strict=True)
        if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1
    ]
    for (a, one), (b, other) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        wide, high = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        if wide > 1 and high > 1:
            found.append(f"{a.get_text()!r} and {b.get_text()!r} overlap")
    return found


LONG = tuple(f"{i} a name that is longer than any label" for i in range(16))
KINDS = {
    "ten": CIFAR,
    "two": ("cat", "dog"),
    "long": LONG,
    "wide": tuple(f"WWWWWWWWW{i}" for i in range(10)),
    "many": tuple(f"species {i}" for i in range(24)),
    "hundred": tuple(f"class name {i}" for i in range(120)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_cut_off_or_overlaps(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, KINDS[kind], n=120, views=4)
    for name, make in FIGURES.items():
        if kind == "ten" or name != "tsne_embedding":  # it is laid out as PCA is, after a second of work
            assert faults(make(run), monkeypatch) == [], name


def test_no_text_is_cut_off_with_great_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, views=40, side=100)
    recipe = {**run.recipe, "epochs": 100_000, "encoder": "a_name_of_an_encoder_" * 4, "seed": 2**62}
    runs.write_json(run.file(runs.RECIPE), recipe)
    rows = [
        {"step": 10**9 * i, "epoch": 99_000.5 * i, "loss": 12345.678 / i, **fake_health(99_000 * i)} for i in (1, 2)
    ]
    run.file(runs.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("loss_curve", "health", "views"):
        assert faults(FIGURES[name](run), monkeypatch) == [], name


def test_the_check_finds_planted_faults(tiny: Run, monkeypatch: pytest.MonkeyPatch):
    figure = FIGURES["confusion_matrix"](tiny)
    figure.axes[0].text(0.2, 0, "over a cell")
    figure.text(0.99, 0.5, "over the edge")
    found = "; ".join(faults(figure, monkeypatch))
    assert "'over a cell' overlap" in found and "'over the edge' is cut off" in found


# Titles carry the run's numbers


def test_loss_title(tiny: Run):
    assert title("loss_curve", tiny) == "Loss: NT-Xent 3.41 → 2.92 over 3 epochs (10 steps each, τ 0.25)"


def test_loss_title_of_a_single_epoch(tmp_path: Path):
    run = fake_run(tmp_path)
    runs.write_json(run.file(runs.RECIPE), {**run.recipe, "epochs": 1})
    runs.save_array(run.file(runs.LOSS), np.array([3.4]))
    rows = run.log()[:5]
    run.file(runs.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert title("loss_curve", run) == "Loss: NT-Xent 3.77 → 3.23 over 1 epoch (10 steps each, τ 0.25)"
    run.file(runs.LOG).unlink()
    assert title("loss_curve", run) == "Loss: NT-Xent 3.40 over 1 epoch (τ 0.25)"


def test_loss_of_an_unfinished_run(tmp_path: Path):
    run = fake_run(tmp_path)
    run.file(runs.LOSS).unlink()
    lines = run.file(runs.LOG).read_text().splitlines()
    nan = json.dumps({"step": 17, "epoch": 1.7, "loss": None})
    run.file(runs.LOG).write_text("\n".join([*lines[:8], nan]))
    assert title("loss_curve", run) == "Loss: NT-Xent 3.77 → 3.08 over 1.6 of 3 epochs (10 steps each, τ 0.25)"


def test_other_methods_have_a_loss_without_a_name(tmp_path: Path):
    run = fake_run(tmp_path)
    runs.write_json(run.file(runs.RECIPE), {**run.recipe, "method": "byol", "head": {}})
    assert title("loss_curve", run) == "Loss: 3.41 → 2.92 over 3 epochs (10 steps each)"
    assert figures.chance_loss(run.recipe) == []


@pytest.mark.parametrize(("views", "batch"), [(2, 2), (2, 256), (4, 7)])
def test_chance_is_the_loss_of_equal_projections(views: int, batch: int):
    recipe = {"method": "simclr", "views": views, "batch_size": batch}
    [(chance, formula)] = figures.chance_loss(recipe)
    assert chance == pytest.approx(nt_xent_views(torch.ones(views, batch, 3).double(), 0.2).item(), abs=1e-12)
    if views == 2:
        assert formula == f"ln {2 * batch - 1:,}"


def test_loss_curve_shows_every_value(tiny: Run):
    logged, means, chance = FIGURES["loss_curve"](tiny).axes[0].lines
    assert logged.get_ydata().tolist() == [row["loss"] for row in tiny.log()]
    assert means.get_ydata().tolist() == [3.412, 3.123, 2.918]
    assert means.get_xdata().tolist() == [0.5, 1.5, 2.5]  # the middle of each epoch
    assert chance.get_ydata() == pytest.approx([math.log(63)] * 2)


def test_health_title(tiny: Run):
    expected = "Health by epoch 3: RankMe 49 → 67; z: alignment 0.17, uniformity −1.50, spread 0.45"
    assert title("health", tiny) == expected


def test_health_shows_every_value(tiny: Run):
    axes = FIGURES["health"](tiny).axes
    rows = [row for row in tiny.log() if "h_rankme" in row]
    for panel, measure in zip(axes[:4], figures.HEALTH, strict=True):
        for line, place in zip(panel.lines, "hz", strict=True):
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert line.get_ydata().tolist() == [row[f"{place}_{measure}"] for row in rows]
    positive, negative = (stairs.get_data().values for stairs in axes[4].patches)
    assert positive.sum() == pytest.approx(1) and positive.tolist() == negative.tolist()[::-1]
    assert [line.get_ydata()[2] for line in axes[5].lines] == pytest.approx([0.3, 0.1])


def test_a_log_without_health_has_no_such_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path, n=30)
    rows = [{key: row[key] for key in ("step", "epoch", "loss")} for row in run.log()]
    run.file(runs.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {path.stem for path in draw(run)} == set(FIGURES) - {"health"}
    assert "health is not drawn" in capsys.readouterr().err


def test_health_of_features_that_were_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One look, no projector, and NaN, which the log holds as null."""
    run = fake_run(tmp_path)
    row = {"step": 10, "epoch": 1.0, "h_rankme": 12.0, "h_alignment": None, "h_spectrum": [None, None]}
    run.file(runs.LOG).write_text(json.dumps(row))
    figure = FIGURES["health"](run)
    assert figure.get_suptitle() == "Health by epoch 1: RankMe 12; h: no numbers"
    assert faults(figure, monkeypatch) == []


def test_confusion_title(tiny: Run):
    right = (tiny.array("test_lbl.npy") == tiny.array("test_pred.npy")).mean()
    expected = f"Linear probe: {100 * right:.1f} % of 100 test images right (chance 12.3 %)"
    assert title("confusion_matrix", tiny) == expected


def test_chance_without_scores_is_the_most_frequent_class(tmp_path: Path):
    run = fake_run(tmp_path, ("a", "b", "c"))
    run.file(runs.SCORES).unlink()
    assert title("confusion_matrix", run).endswith("(chance 34.0 %)")


def test_embedding_titles(tiny: Run):
    centred = tiny.array("test_emb.npy").astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(centred.T))[::-1]
    share = 100 * variances[:2].sum() / variances.sum()
    assert (
        title("pca_embedding", tiny) == f"PCA of 100 test embeddings: 2 components hold {share:.1f} % of the variance"
    )
    axes = FIGURES["pca_embedding"](tiny).axes[0]
    assert f"{100 * variances[0] / variances.sum():.1f} %" in axes.get_xlabel()
    assert title("tsne_embedding", tiny) == "t-SNE of 100 test embeddings: kNN in all 12 dimensions is 87.6 % right"


def test_views_title(tiny: Run):
    assert title("views", tiny) == "Views as the network sees them: 2 views of each of 10 images, 8 × 8 pixels"


# What they show is right


def cells(figure: Figure) -> np.ndarray:
    """The numbers in the cells of a confusion matrix."""
    found = {tuple(map(int, text.get_position()[::-1])): int(text.get_text()) for text in figure.axes[0].texts}
    side = math.isqrt(len(found))
    return np.array([[found[i, j] for j in range(side)] for i in range(side)])


def test_confusion_counts_are_scikit_learns(tiny: Run):
    labels, predicted = tiny.array("test_lbl.npy"), tiny.array("test_pred.npy")
    figure = FIGURES["confusion_matrix"](tiny)
    assert (cells(figure) == confusion_matrix(labels, predicted)).all()
    recalls = [f"{100 * r:.1f} %" for r in recall_score(labels, predicted, average=None)]
    assert [text.get_text() for text in figure.axes[1].texts] == recalls
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert tuple(label.get_text() for label in axis.get_ticklabels()) == CIFAR


def test_a_class_without_test_images(tmp_path: Path):
    run = fake_run(tmp_path, ("a", "b", "c"), n=2)
    figure = FIGURES["confusion_matrix"](run)
    assert cells(figure)[2].sum() == 0
    assert figure.axes[1].texts[2].get_text() == "–"


def test_small_integer_labels_do_not_overflow(tmp_path: Path):
    run = fake_run(tmp_path, tuple(map(str, range(20))), n=200)
    before = cells(FIGURES["confusion_matrix"](run))
    for name in ("test_lbl.npy", "test_pred.npy"):
        runs.save_array(run.file(name), run.array(name).astype(np.uint8))
    assert (cells(FIGURES["confusion_matrix"](run)) == before).all()


def test_many_classes_have_no_counts(tmp_path: Path):
    run = fake_run(tmp_path, KINDS["many"])
    assert len(FIGURES["confusion_matrix"](run).axes[0].texts) == 0


def test_tsne_keeps_neighbours(tiny: Run):
    embeddings, labels = tiny.array("test_emb.npy"), tiny.array("test_lbl.npy")
    plane, perplexity = figures.tsne(embeddings)
    assert plane.shape == (100, 2) and perplexity == 30
    near = KNeighborsClassifier(5).fit(plane[:50], labels[:50])
    assert near.score(plane[50:], labels[50:]) > 0.9


def test_tsne_goes_by_direction_alone(tiny: Run):
    embeddings = tiny.array("test_emb.npy")[:40]
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, (40, 1))
    assert (figures.tsne(embeddings)[0] == figures.tsne((embeddings * lengths).astype(np.float32))[0]).all()


@pytest.mark.parametrize("n", [3, 4, 7])
def test_tsne_of_few_images(n: int):
    plane, perplexity = figures.tsne(np.random.default_rng(0).normal(size=(n, 5)))
    assert np.isfinite(plane).all() and plane.shape == (n, 2)
    assert perplexity == pytest.approx((n - 1) / 3)


def test_a_single_dimension(tmp_path: Path):
    run = fake_run(tmp_path)
    runs.save_array(run.file("test_emb.npy"), run.array("test_emb.npy")[:, :1])
    assert title("pca_embedding", run).endswith("hold 100.0 % of the variance")
    assert len(draw(run)) == len(FIGURES)


def test_sample_is_random_and_repeatable():
    rows = figures.sample(12_000)
    assert len(set(rows.tolist())) == 5000 and rows.max() > 11_000
    assert (rows == figures.sample(12_000)).all()
    assert sorted(figures.sample(10)) == list(range(10))


def places(points: np.ndarray) -> list[tuple[float, float]]:
    return [(round(float(x), 3), round(float(y), 3)) for x, y in points]


def test_every_point_has_its_place_and_the_look_of_its_class(tiny: Run):
    axes = FIGURES["pca_embedding"](tiny).axes[0]
    _, expected = figures.principal(tiny.array("test_emb.npy"), 2)
    labels = {place: k for place, k in zip(places(expected), tiny.array("test_lbl.npy"), strict=True)}
    shown = [place for part in axes.collections for place in places(part.get_offsets())]
    assert sorted(shown) == sorted(labels)
    for part in axes.collections:
        for place in places(part.get_offsets()):
            assert to_rgb(part.get_facecolor()[0][:3]) == to_rgb(figures.look(labels[place])[0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CIFAR)
    assert {text.get_text() for text in axes.texts} == set(CIFAR)


def test_a_name_stands_in_a_cluster_not_between_two():
    random = np.random.default_rng(0)
    two = np.concatenate([random.normal(0, 0.1, (60, 2)), random.normal(10, 0.1, (50, 2))])
    assert np.abs(figures.densest(random.permutation(two))).max() < 1
    assert figures.densest(np.array([[3.0, 4.0]])).tolist() == [3.0, 4.0]


def test_views_are_laid_out_an_image_a_column():
    tiles = np.arange(3 * 2, dtype=np.uint8).reshape(3, 2, 1, 1, 1) * np.ones((3, 2, 3, 4, 5), dtype=np.uint8)
    grid = figures.mosaic(tiles, gap=2)
    assert grid.shape == (2 * 6 - 2, 3 * 7 - 2, 3)
    assert grid[0, ::7, 0].tolist() == [0, 2, 4] and grid[6, ::7, 0].tolist() == [1, 3, 5]
    assert (grid[4:6] == 255).all() and (grid[:, 5:7] == 255).all()
    assert figures.mosaic(tiles[:, :, :1], gap=2).shape == grid.shape  # one channel becomes grey


# Colours


CONES = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(colours: tuple[str, ...], cones: str) -> np.ndarray:
    """Colours as seen with these cones, in OKLab (Ottosson 2020), where a distance of 0.02 is just noticeable."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(CONES[cones]).T
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(np.clip(linear, 0, 1) @ np.array(to_lms).T) @ np.array(to_lab).T


def nearest(colours: tuple[str, ...], cones: str) -> float:
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(oklab(colours, cones), 2))


@pytest.mark.parametrize("cones", CONES)
def test_the_palette_can_be_told_apart(cones: str):
    assert nearest(figures.PALETTE, cones) > 0.11
    assert nearest((*figures.PALETTE, "white"), cones) > 0.11


def test_the_palette_check_can_fail():
    tab10 = tuple(matplotlib.color_sequences["tab10"])
    assert nearest(tab10, "no red") < 0.02


def test_a_hundred_classes_look_different():
    assert len({figures.look(k) for k in range(100)}) == 100
    assert len({figures.look(k)[0] for k in range(10)}) == len({figures.look(k)[1] for k in range(10)}) == 10


# What is missing, what is bad

NEEDS = {
    "test_emb.npy": {"pca_embedding", "tsne_embedding"},
    "test_pred.npy": {"confusion_matrix"},
    "views.npy": {"views"},
    "classes.json": {"confusion_matrix", "pca_embedding", "tsne_embedding"},
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_has_no_input_is_left_out_and_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path, n=30)
    run.file(name).unlink()
    assert {path.stem for path in draw(run)} == set(FIGURES) - NEEDS[name]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(NEEDS[name])
    for line in said:
        assert f"{name}' is missing: `crlf " in line


def test_a_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Run(tmp_path)
    runs.write_json(run.file(runs.RECIPE), {"method": "simclr"})
    assert draw(run) == []
    assert "loss_curve is not drawn" in capsys.readouterr().err


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, n=40)
    for name in ("test_lbl.npy", "test_pred.npy", "classes.json"):
        run.file(name).unlink()
    assert {path.stem for path in draw(run)} == set(FIGURES) - {"confusion_matrix"}
    assert capsys.readouterr().err == "confusion_matrix is not drawn: the data set has no labels\n"
    figure = FIGURES["pca_embedding"](run)
    assert figure.axes[0].get_legend() is None and "no labels" in figure.get_supxlabel()
    assert faults(figure, monkeypatch) == []


def test_two_images_are_too_few_for_tsne(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path, n=2)
    assert {path.stem for path in draw(run)} == set(FIGURES) - {"tsne_embedding"}
    assert "has 2 rows, at least 3 are needed" in capsys.readouterr().err


def test_a_collapsed_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    runs.save_array(run.file("test_emb.npy"), np.ones((100, 4), dtype=np.float32))
    assert {path.stem for path in draw(run)} == set(FIGURES) - {"tsne_embedding"}
    assert "all 100 embeddings point the same way" in capsys.readouterr().err
    assert title("pca_embedding", run).endswith("hold 0.0 % of the variance")


@pytest.mark.parametrize("name", ["confusion_matrix", "pca_embedding", "tsne_embedding"])
def test_hostile_class_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = FIGURES[name](fake_run(tmp_path, HOSTILE))
    assert faults(figure, monkeypatch) == []
    assert figures.png(figure)


SHOWS = {
    "test_emb.npy": "pca_embedding",
    "test_lbl.npy": "pca_embedding",
    "test_pred.npy": "confusion_matrix",
    "views.npy": "views",
    "loss.npy": "loss_curve",
}
BAD = [
    ("test_emb.npy", np.ones(5)),
    ("test_emb.npy", np.full((100, 2), np.nan, dtype=np.float32)),
    ("test_emb.npy", np.ones((7, 3))),
    ("test_lbl.npy", np.full(100, 10)),
    ("test_lbl.npy", np.full(100, -1)),
    ("test_lbl.npy", np.zeros(100)),
    ("test_lbl.npy", np.zeros((100, 1), dtype=int)),
    ("test_pred.npy", np.full(100, 10)),
    ("test_pred.npy", np.zeros(99, dtype=int)),
    ("views.npy", np.zeros((10, 3, 3, 8, 8))),
    ("views.npy", np.zeros((3, 8, 8), dtype=np.uint8)),
]


@pytest.mark.parametrize(("name", "array"), BAD)
def test_bad_arrays(name: str, array: np.ndarray, tmp_path: Path):
    run = fake_run(tmp_path)
    runs.save_array(run.file(name), array)
    with pytest.raises(InputError, match=r"(test_\w+|views)\.npy must") as error:
        FIGURES[SHOWS[name]](run)
    assert "\n" not in str(error.value) and not isinstance(error.value, figures.NotDrawn)


@pytest.mark.parametrize("name", SHOWS)
def test_damaged_files_are_errors(name: str, tmp_path: Path):
    run = fake_run(tmp_path)
    run.file(name).write_bytes(run.file(name).read_bytes()[:40])
    with pytest.raises(InputError, match=name) as error:
        FIGURES[SHOWS[name]](run)
    assert not isinstance(error.value, figures.NotDrawn)


def test_draw_does_not_hide_a_damaged_file(tmp_path: Path):
    run = fake_run(tmp_path)
    run.file("test_pred.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="test_pred"):
        draw(run)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '"cat"'])
def test_bad_class_names(text: str, tmp_path: Path):
    run = fake_run(tmp_path)
    run.file(runs.CLASSES).write_text(text)
    with pytest.raises(InputError, match=r"classes\.json"):
        draw(run)
