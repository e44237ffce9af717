"""Figures: every one draws and cuts nothing off; its pixels are a function of the run; what is bad is said."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from figure_faults import faults
from matplotlib.text import Text
from PIL import Image
from sampling import some
from tiny_run import CIFAR, HOSTILE, fake_health, fake_run

import crlf.runs.run
from crlf.errors import InputError
from crlf.runs.files import save_array, write_json
from crlf.runs.run import CLASSES, LOG, PDFS, RECIPE, Run
from crlf.visualization import figures
from crlf.visualization.figures import FIGURES, draw, style
from crlf.visualization.figures.projections import maps
from crlf.visualization.figures.run_arrays import NotDrawn
from crlf.visualization.figures.search_results import ACROSS, Tile, gallery, short
from crlf.visualization.figures.style import sheet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fake_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and what is said of them is said, but no pixels: those take most of the time."""
    for kind in figures.RENDER:
        monkeypatch.setitem(figures.RENDER, kind, lambda make, run, columns: repr(make(run)).encode())


def title(name: str, run: Run) -> str:
    return FIGURES[name](run).get_suptitle()


# Every figure of the table


def test_the_table_is_the_run_folders():
    assert tuple(f"{name}.png" for name in FIGURES) == crlf.runs.run.FIGURES


def test_draw_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    both = zip(crlf.runs.run.FIGURES, PDFS, strict=True)
    assert draw(run) == [run.file(name) for pair in both for name in pair]
    for path in map(run.file, crlf.runs.run.FIGURES):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(np.unique(np.asarray(image))) > 20, "an empty picture"
    assert run.scores["draw_seconds"] > 0
    assert draw(str(tmp_path), format="png") == [run.file(name) for name in crlf.runs.run.FIGURES]
    said = capsys.readouterr().err.splitlines()
    assert [re.sub(r" in [\d.]+ s", "", line).split(":")[0] for line in said] == [
        f"7 figures, {count} files in {str(tmp_path)!r}" for count in (14, 7)
    ]


@pytest.mark.parametrize("name", some(FIGURES, ["loss_curve", "confusion_matrix", "tsne_embedding"]))
def test_the_same_run_gives_the_same_bytes_whatever_the_users_style(name: str, tiny: Run):
    before = dict(matplotlib.rcParams)
    first = figures.png(FIGURES[name](tiny))
    assert dict(matplotlib.rcParams) == before, "a figure changed the settings of its user"
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 20, "axes.grid": True, "savefig.dpi": 30}):
        assert figures.png(FIGURES[name](tiny)) == first


@pytest.mark.parametrize("columns", some(style.WIDTHS))
@pytest.mark.parametrize("name", some(FIGURES, ["loss_curve", "confusion_matrix", "views"]))
def test_on_paper_a_figure_is_as_wide_as_its_columns(
    name: str, columns: int, tiny: Run, monkeypatch: pytest.MonkeyPatch
):
    with style.on_paper(columns):
        figure = FIGURES[name](tiny)
        assert name == "filters" or faults(figure, monkeypatch) == []  # it has no text
    data = figures.for_paper(FIGURES[name], tiny, columns)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", data)
    assert box and float(box[1]) == pytest.approx(72 * style.WIDTHS[columns], abs=0.1)
    assert data.startswith(b"%PDF") and b"/Title" in data and b"/Subject" in data and b"CreationDate" not in data
    shown = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    assert figure.get_suptitle() not in shown
    assert figures.for_paper(FIGURES[name], tiny, columns) == data
    assert style.COLUMNS.get() == 0


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


LONG = tuple(f"{i} a name that is longer than any label" for i in range(16))
KINDS = {
    "ten": CIFAR,
    "two": ("cat", "dog"),
    "long": LONG,
    "wide": tuple(f"WWWWWWWWW{i}" for i in range(10)),
    "many": tuple(f"species {i}" for i in range(24)),
    "hundred": tuple(f"class name {i}" for i in range(120)),
}


@pytest.mark.parametrize("kind", some(KINDS, ["ten", "hundred"]))
def test_no_text_is_cut_off_or_overlaps(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, KINDS[kind], n=120, views=4)
    for name, make in FIGURES.items():
        if kind == "ten" or name != "tsne_embedding":  # it is laid out as PCA is, after a second of work
            assert faults(make(run), monkeypatch) == [], name


def test_no_text_is_cut_off_with_great_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, views=40, side=100)
    recipe = {**run.settings, "epochs": 100_000, "encoder": "a_name_of_an_encoder_" * 4, "seed": 2**62}
    write_json(run.file(RECIPE), recipe)
    rows = [
        {"step": 10**9 * i, "epoch": 99_000.5 * i, "loss": 12345.678 / i, **fake_health(99_000 * i)} for i in (1, 2)
    ]
    run.file(LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("loss_curve", "health", "views"):
        assert faults(FIGURES[name](run), monkeypatch) == [], name


def test_the_check_finds_planted_faults(tiny: Run, monkeypatch: pytest.MonkeyPatch):
    figure = FIGURES["confusion_matrix"](tiny)
    figure.axes[0].text(0.2, 0, "over a cell")
    figure.text(0.99, 0.5, "over the edge")
    found = "; ".join(faults(figure, monkeypatch))
    assert "'over a cell' overlap" in found and "'over the edge' is cut off" in found


# What is missing, what is bad

NEEDS = {
    "test_emb.npy": {"pca_embedding", "tsne_embedding"},
    "test_pred.npy": {"confusion_matrix"},
    "views.npy": {"views"},
    "classes.json": {"confusion_matrix", "pca_embedding", "tsne_embedding"},
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_has_no_input_is_left_out_and_said(
    name: str, tmp_path: Path, unrendered: None, capsys: pytest.CaptureFixture[str]
):
    run = fake_run(tmp_path, n=30)
    run.file(name).unlink()
    assert {path.stem for path in draw(run, format="png")} == set(FIGURES) - NEEDS[name]
    *said, last = capsys.readouterr().err.splitlines()
    assert len(said) == len(NEEDS[name]) and last.startswith(f"{7 - len(said)} figures in ")
    for line in said:
        assert f"{name}' is missing: `crlf " in line


def test_a_run_that_has_just_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Run(tmp_path)
    write_json(run.file(RECIPE), {"method": "simclr"})
    assert draw(run) == []
    assert "loss_curve is not drawn" in capsys.readouterr().err


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path, n=40)
    for name in ("test_lbl.npy", "test_pred.npy", "classes.json"):
        run.file(name).unlink()
    assert {path.stem for path in draw(run, format="png")} == set(FIGURES) - {"confusion_matrix"}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "confusion_matrix is not drawn: the data set has no labels" and len(said) == 2
    for name in ("pca_embedding", "tsne_embedding"):  # in the colours of the clusters
        figure = FIGURES[name](run)
        legend = figure.axes[0].get_legend()
        assert legend is not None and "no labels" in figure.get_supxlabel()
        clusters = [f"cluster {k + 1}" for k in range(1 + maps(run)["cluster"].max())]
        assert [text.get_text() for text in legend.get_texts()] == clusters and len(clusters) == 4
        assert faults(figure, monkeypatch) == []


def test_a_loss_that_was_measured_once_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = fake_run(tmp_path)
    run.file("log.jsonl").write_text(json.dumps(run.log()[0]) + "\n")
    save_array(run.file("loss.npy"), np.array([3.412]))
    figure = FIGURES["loss_curve"](run)
    [axes] = figure.axes
    assert not axes.lines and next(text.get_text() for text in axes.texts) == "3.412"
    assert faults(figure, monkeypatch) == []


@pytest.mark.parametrize("letter", ["W", "m", "i"])
def test_a_caption_ends_within_the_figure(letter: str):
    figure = sheet((8, 4), "Title", " ".join([letter * 9] * 60))
    figure.draw_without_rendering()
    caption = figure._supxlabel  # type: ignore[attr-defined]
    assert 0.5 * figure.bbox.width < caption.get_window_extent().width < 0.98 * figure.bbox.width


@pytest.mark.parametrize("letter", ["W", "i"])
def test_pictures_and_names_of_neighbours_leave_a_margin(letter: str):
    tile = Tile(np.zeros((8, 8, 3), np.uint8), (letter * 40, "0.91"))
    with Image.open(io.BytesIO(gallery([(tile, [tile] * ACROSS)]))) as image:
        inked = np.flatnonzero((np.asarray(image.convert("L")) < 128).any(axis=0))
    assert inked[0] > 8 and image.width - inked[-1] > 8
    assert (len(short(letter * 40)) == 16) == (letter == "i"), "as many letters as fit"


def test_two_images_are_too_few_for_tsne(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path, n=2)
    assert {path.stem for path in draw(run, format="png")} == set(FIGURES) - {"tsne_embedding"}
    assert "has 2 rows, at least 3 are needed" in capsys.readouterr().err


@pytest.mark.long
def test_a_collapsed_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = fake_run(tmp_path)
    save_array(run.file("test_emb.npy"), np.ones((100, 4), dtype=np.float32))
    assert {path.stem for path in draw(run, format="png")} == set(FIGURES) - {"tsne_embedding"}
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
    save_array(run.file(name), array)
    with pytest.raises(InputError, match=r"(test_\w+|views)\.npy must") as error:
        FIGURES[SHOWS[name]](run)
    assert "\n" not in str(error.value) and not isinstance(error.value, NotDrawn)


@pytest.mark.parametrize("name", SHOWS)
def test_damaged_files_are_errors(name: str, tmp_path: Path):
    run = fake_run(tmp_path)
    run.file(name).write_bytes(run.file(name).read_bytes()[:40])
    with pytest.raises(InputError, match=name) as error:
        FIGURES[SHOWS[name]](run)
    assert not isinstance(error.value, NotDrawn)


def test_draw_does_not_hide_a_damaged_file(tmp_path: Path, unrendered: None):
    run = fake_run(tmp_path)
    run.file("test_pred.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="test_pred"):
        draw(run)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '"cat"'])
def test_bad_class_names(text: str, tmp_path: Path, unrendered: None):
    run = fake_run(tmp_path)
    run.file(CLASSES).write_text(text)
    with pytest.raises(InputError, match=r"classes\.json"):
        draw(run)
