"""What a figure says is right: the numbers of its title, its cells, its points."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_faults import faults
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, recall_score
from sklearn.neighbors import KNeighborsClassifier
from tiny_run import CIFAR, fake_run

from crlf.methods.simclr import nt_xent_views
from crlf.runs.files import save_array, write_json
from crlf.runs.run import LOG, LOSS, RECIPE, SCORES, Run
from crlf.visualization.figures import FIGURES, curves, draw, embedding_maps, projections, style, views_and_filters


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fake_run(tmp_path_factory.mktemp("tiny"))


def title(name: str, run: Run) -> str:
    return FIGURES[name](run).get_suptitle()


# Titles carry the run's numbers


def test_loss_title(tiny: Run):
    assert title("loss_curve", tiny) == "Loss: NT-Xent 3.41 → 2.92 over 3 epochs (10 steps each, τ 0.25)"


def test_loss_title_of_a_single_epoch(tmp_path: Path):
    run = fake_run(tmp_path)
    write_json(run.file(RECIPE), {**run.settings, "epochs": 1})
    save_array(run.file(LOSS), np.array([3.4]))
    rows = run.log()[:5]
    run.file(LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert title("loss_curve", run) == "Loss: NT-Xent 3.77 → 3.23 over 1 epoch (10 steps each, τ 0.25)"
    run.file(LOG).unlink()
    assert title("loss_curve", run) == "Loss: NT-Xent 3.40 over 1 epoch (τ 0.25)"


def test_loss_of_an_unfinished_run(tmp_path: Path):
    run = fake_run(tmp_path)
    run.file(LOSS).unlink()
    lines = run.file(LOG).read_text().splitlines()
    nan = json.dumps({"step": 17, "epoch": 1.7, "loss": None})
    run.file(LOG).write_text("\n".join([*lines[:8], nan]))
    assert title("loss_curve", run) == "Loss: NT-Xent 3.77 → 3.08 over 1.6 of 3 epochs (10 steps each, τ 0.25)"


def test_other_methods_have_a_loss_without_a_name(tmp_path: Path):
    run = fake_run(tmp_path)
    write_json(run.file(RECIPE), {**run.settings, "method": "byol", "head": {}})
    assert title("loss_curve", run) == "Loss: 3.41 → 2.92 over 3 epochs (10 steps each)"
    assert curves.chance_loss(run.settings) == []


@pytest.mark.parametrize(("views", "batch"), [(2, 2), (2, 256), (4, 7)])
def test_chance_is_the_loss_of_equal_projections(views: int, batch: int):
    recipe = {"method": "simclr", "views": views, "batch_size": batch}
    [(chance, formula)] = curves.chance_loss(recipe)
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
    for panel, measure in zip(axes[:4], curves.HEALTH, strict=True):
        for line, place in zip(panel.lines, "hz", strict=True):
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert line.get_ydata().tolist() == [row[f"{place}_{measure}"] for row in rows]
    positive, negative = (stairs.get_data().values for stairs in axes[4].patches)
    assert positive.sum() == pytest.approx(1) and positive.tolist() == negative.tolist()[::-1]
    assert [line.get_ydata()[2] for line in axes[5].lines] == pytest.approx([0.3, 0.1])


def test_what_was_measured_once_is_a_number_and_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path)
    rows = [row for row in run.log() if row["step"] <= 10]
    run.file(LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = FIGURES["health"](run)
    panels = figure.axes[:4]
    assert not any(axes.lines for axes in panels)
    h, z = (rows[-1][f"{place}_rankme"] for place in "hz")
    assert [text.get_text() for text in panels[0].texts] == [
        f"h: {h:.3g}\nz: {z:.3g}",
        "RankMe\nmeasured once, at epoch 1",
    ]
    assert faults(figure, monkeypatch) == []


def test_a_log_without_health_has_no_such_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path, n=30)
    rows = [{key: row[key] for key in ("step", "epoch", "loss")} for row in run.log()]
    run.file(LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {path.stem for path in draw(run, format="png")} == set(FIGURES) - {"health"}
    assert "health is not drawn" in capsys.readouterr().err


def test_health_of_features_that_were_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One look, no projector, and NaN, which the log holds as null."""
    run = fake_run(tmp_path)
    row = {"step": 10, "epoch": 1.0, "h_rankme": 12.0, "h_alignment": None, "h_spectrum": [None, None]}
    run.file(LOG).write_text(json.dumps(row))
    figure = FIGURES["health"](run)
    assert figure.get_suptitle() == "Health by epoch 1: RankMe 12; h: no numbers"
    assert faults(figure, monkeypatch) == []


def test_confusion_title(tiny: Run):
    right = (tiny.array("test_lbl.npy") == tiny.array("test_pred.npy")).mean()
    expected = f"Linear probe: {100 * right:.1f} % of 100 test images right (chance 12.3 %)"
    assert title("confusion_matrix", tiny) == expected


def test_chance_without_scores_is_the_most_frequent_class(tmp_path: Path):
    run = fake_run(tmp_path, ("a", "b", "c"))
    run.file(SCORES).unlink()
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
        save_array(run.file(name), run.array(name).astype(np.uint8))
    assert (cells(FIGURES["confusion_matrix"](run)) == before).all()


def test_many_classes_have_no_counts(tmp_path: Path):
    run = fake_run(tmp_path, tuple(f"species {i}" for i in range(24)))
    assert len(FIGURES["confusion_matrix"](run).axes[0].texts) == 0


def test_tsne_keeps_neighbours(tiny: Run):
    embeddings, labels = tiny.array("test_emb.npy"), tiny.array("test_lbl.npy")
    plane, perplexity = projections.tsne(embeddings)
    assert plane.shape == (100, 2) and perplexity == 30
    near = KNeighborsClassifier(5).fit(plane[:50], labels[:50])
    assert near.score(plane[50:], labels[50:]) > 0.9


def test_tsne_goes_by_direction_alone(tiny: Run):
    embeddings = tiny.array("test_emb.npy")[:40]
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, (40, 1))
    assert (projections.tsne(embeddings)[0] == projections.tsne((embeddings * lengths).astype(np.float32))[0]).all()


@pytest.mark.parametrize("n", [3, 4, 7])
def test_tsne_of_few_images(n: int):
    plane, perplexity = projections.tsne(np.random.default_rng(0).normal(size=(n, 5)))
    assert np.isfinite(plane).all() and plane.shape == (n, 2)
    assert perplexity == pytest.approx((n - 1) / 3)


def test_a_single_dimension(tmp_path: Path):
    run = fake_run(tmp_path)
    save_array(run.file("test_emb.npy"), run.array("test_emb.npy")[:, :1])
    assert title("pca_embedding", run).endswith("hold 100.0 % of the variance")
    assert len(draw(run, format="png")) == len(FIGURES)


def test_sample_is_random_and_repeatable():
    rows = projections.sample(12_000)
    assert len(set(rows.tolist())) == 5000 and rows.max() > 11_000
    assert (rows == projections.sample(12_000)).all()
    assert sorted(projections.sample(10)) == list(range(10))


def places(points: np.ndarray) -> list[tuple[float, float]]:
    return [(round(float(x), 3), round(float(y), 3)) for x, y in points]


def test_every_point_has_its_place_and_the_look_of_its_class(tiny: Run):
    axes = FIGURES["pca_embedding"](tiny).axes[0]
    _, expected = projections.principal(tiny.array("test_emb.npy"), 2)
    labels = {place: k for place, k in zip(places(expected), tiny.array("test_lbl.npy"), strict=True)}
    shown = [place for part in axes.collections for place in places(part.get_offsets())]
    assert sorted(shown) == sorted(labels)
    for part in axes.collections:
        for place in places(part.get_offsets()):
            assert to_rgb(part.get_facecolor()[0][:3]) == to_rgb(style.look(labels[place])[0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CIFAR)
    assert {text.get_text() for text in axes.texts} == set(CIFAR)


def test_each_name_is_joined_to_a_point_of_its_own_class(tiny: Run):
    for name in ("pca_embedding", "tsne_embedding"):
        axes = FIGURES[name](tiny).axes[0]
        points = [(place, part) for part in axes.collections for place in places(part.get_offsets())]
        colour_at = {place: to_rgb(part.get_facecolor()[0][:3]) for place, part in points}
        dots, leads = axes.lines[::2], axes.lines[1::2]
        assert [text.get_text() for text in axes.texts] == list(CIFAR)
        for k, (text, dot, lead) in enumerate(zip(axes.texts, dots, leads, strict=True)):
            colour, marker = style.look(k)
            assert (dot.get_marker(), to_rgb(dot.get_color())) == (marker, to_rgb(colour))
            [mark] = places(dot.get_xydata())
            assert colour_at[mark] == to_rgb(colour)
            assert places(lead.get_xydata()) == [mark, *places([text.get_position()])]


def test_a_name_stands_in_a_cluster_not_between_two():
    random = np.random.default_rng(0)
    two = np.concatenate([random.normal(0, 0.1, (60, 2)), random.normal(10, 0.1, (50, 2))])
    assert np.abs(embedding_maps.densest(random.permutation(two))).max() < 1
    assert embedding_maps.densest(np.array([[3.0, 4.0]])).tolist() == [3.0, 4.0]


def test_originals_are_on_top_and_named_so(tiny: Run):
    tiles, axes = tiny.array("views.npy"), FIGURES["views"](tiny).axes[0]
    drawn = axes.get_images()[0].get_array()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["original", "view 1", "view 2"]
    for row, place in enumerate(axes.get_yticks()):
        top = round(place - 3.5)
        for i in range(10):
            assert (drawn[top : top + 8, 9 * i : 9 * i + 8] == tiles[i, row].transpose(1, 2, 0)).all(), (row, i)


def test_views_are_laid_out_an_image_a_column():
    tiles = np.arange(3 * 2, dtype=np.uint8).reshape(3, 2, 1, 1, 1) * np.ones((3, 2, 3, 4, 5), dtype=np.uint8)
    grid = views_and_filters.mosaic(tiles, gap=2)
    assert grid.shape == (2 * 6 - 2, 3 * 7 - 2, 3)
    assert grid[0, ::7, 0].tolist() == [0, 2, 4] and grid[6, ::7, 0].tolist() == [1, 3, 5]
    assert (grid[4:6] == 255).all() and (grid[:, 5:7] == 255).all()
    assert views_and_filters.mosaic(tiles[:, :, :1], gap=2).shape == grid.shape  # one channel becomes grey
