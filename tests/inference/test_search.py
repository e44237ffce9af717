"""Search is exact, and names what it finds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from terminal import refused

import crlf
from crlf import cli
from crlf.data import load
from crlf.data.lookup import pictures
from crlf.embedding.table import Table, Writer
from crlf.inference.search import look_up, nearest
from crlf.recipe import Recipe
from crlf.visualization.figures.search_results import ACROSS, Tile, gallery, short

TINY = Recipe(data="shapes", subset=64, batch_size=32, views=2, epochs=1)
IMAGES = load("shapes")[0].images[:64].numpy()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> crlf.Run:
    made = crlf.pretrain(TINY, out=tmp_path_factory.mktemp("made") / "run", device="cpu")
    return crlf.embed(made, device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Training image 5, as a file."""
    Image.fromarray(IMAGES[5].transpose(1, 2, 0)).save(tmp_path / "phöto.png")
    return tmp_path / "phöto.png"


# Nearest


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_it_is_scikit_learns_exact_search(part: int):
    random = np.random.default_rng(0)
    rows, queries = (random.normal(size=(n, 20)).astype(np.float32) for n in (300, 9))
    found, near = nearest(queries, (rows[i : i + part] for i in range(0, 300, part)), k=12)
    distance, expected = (
        NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(rows).kneighbors(queries)
    )
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(near, 1 - distance, atol=1e-6)


def test_equal_rows_keep_their_order_and_zeros_are_near_to_nothing():
    rows = np.array([[0, 0], [2, 0], [-1, 0], [1, 0], [5, 0]], np.float32)
    found, near = nearest(np.array([[3, 0]], np.float32), [rows[:2], rows[2:]], k=9)
    assert found.tolist() == [[1, 3, 4, 0, 2]] and near.tolist() == [[1, 1, 1, 0, -1]]


def test_a_length_has_no_weight():
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    scaled = rows * np.geomspace(1e-3, 1e3, 50, dtype=np.float32)[:, None]
    assert np.array_equal(nearest(rows[:4], [rows], 10)[0], nearest(rows[:4], [scaled], 10)[0])


# The command


def test_an_image_of_the_run_finds_itself(run: crlf.Run, photo: Path, capsys):
    [found] = crlf.search(run, [photo], k=4, device="cpu")
    truth = load("shapes")[0]
    assert (found[0].row, found[0].id) == (5, "train/00005") and found[0].similarity == pytest.approx(1, abs=1e-6)
    assert found[0].label == truth.classes[truth.labels[5]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo) and len(lines) == 5
    assert lines[1].split() == ["1.000", found[0].label, "train/00005"]
    whole = np.vstack([run.array("train_emb.npy"), run.array("test_emb.npy")])
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    expected = np.argsort(-(unit @ unit[5]), kind="stable")[:4]
    assert [one.row for one in found] == expected.tolist()
    assert [one.id[:5] for one in found] == ["train" if row < 64 else "test/" for row in expected]


def test_names_are_right_behind_the_first_group_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.embedding.table.GROUP", 4)
    with (tmp_path / "t.parquet").open("wb") as file, Writer(file, 3, "") as writer:
        for first in range(0, 14, 5):  # groups of 5, 5 and 4 rows
            names = [f"image {row}" for row in range(first, min(first + 5, 14))]
            labels = np.array([int(name[6:]) % 3 for name in names])
            writer.add(names, np.zeros((len(names), 3), np.float32), "train", labels, "abc")
    rows = np.array([[13, 0, 7], [4, 5, 13], [9, 10, 3]])
    with Table(tmp_path / "t.parquet") as table:
        found = look_up(table, rows, np.zeros((3, 3)))
    assert [[one.row for one in line] for line in found] == rows.tolist()
    assert all((one.id, one.label) == (f"image {one.row}", "abc"[one.row % 3]) for line in found for one in line)


def test_one_image_in_python_and_several_on_the_command_line(run: crlf.Run, photo: Path, capsys):
    assert len(crlf.search(run, photo, device="cpu")) == 1  # type: ignore[arg-type]
    capsys.readouterr()
    assert cli.main(["search", str(run.path), str(photo), str(photo), "-k", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count(str(photo)) == 2


def test_among_other_images_and_a_picture(run: crlf.Run, photo: Path, tmp_path: Path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    names = [f"{i}.png" for i in range(12)] + ["new\nline.png"]
    for i, name in enumerate(names):
        Image.fromarray(IMAGES[i].transpose(1, 2, 0)).save(folder / name)
    table = crlf.embed(run, folder, out=tmp_path / "t.parquet", device="cpu")
    figure = tmp_path / "g.png"
    words = [str(photo), "--among", str(table), "--figure", str(figure), "--k", "13", "--device", "cpu"]
    assert cli.main(["search", str(run.path), *words]) == 0
    said = capsys.readouterr().out
    assert "1.000    5.png" in said and "new\\nline.png" in said and f"drawn: {str(figure)!r}" in said
    assert contains(figure.read_bytes(), IMAGES[5], times=2)  # the image, and itself as its nearest neighbour


def contains(png: bytes, image: np.ndarray, times: int) -> bool:
    """Whether a picture shows an image so often: its mean colour, within a little, in squares of tile size."""
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
    mean, side = image.mean(axis=(1, 2)), 140  # pixels, a little less than a tile at 150 dpi
    sums = np.pad(drawn.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    means = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    hits = np.abs(means - mean).max(axis=2) < 6
    places = np.argwhere(hits)
    return len(places) > 0 and np.ptp(places[:, 1]) > side * (times - 1) * 0.9


def test_copies_are_left_out_where_that_is_asked_for(run: crlf.Run, photo: Path, tmp_path: Path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in (5, 5, 5, 5, 5, 5, 5, 8, 8, 9, 10, 11, 12):  # seven copies of what is asked, more than twice k
        Image.fromarray(IMAGES[i].transpose(1, 2, 0)).save(folder / f"{i}-{len(list(folder.iterdir()))}.png")
    table = crlf.embed(run, folder, out=tmp_path / "t.parquet", device="cpu")
    [every] = crlf.search(run, [photo], k=13, among=table, device="cpu")
    assert [one.id[:2] for one in every[:7]] == ["5-"] * 7 and every[6].similarity > 1 - 1e-6
    [found] = crlf.search(run, [photo], k=3, distinct=True, among=table, device="cpu")
    others = [one.id for one in every[7:] if one.id != "8-8.png"]  # a copy of 8-7.png, which comes first
    assert [one.id for one in found] == others[:3]
    [found] = crlf.search(run, [photo], k=50, distinct=True, among=table, device="cpu")
    assert sorted(int(one.id.partition("-")[0]) for one in found) == [8, 9, 10, 11, 12]
    capsys.readouterr()
    words = ["--among", str(table), "--distinct", "-k", "2", "--device", "cpu"]
    assert cli.main(["search", str(run.path), str(photo), *words]) == 0
    assert len(said := capsys.readouterr().out.splitlines()) == 3 and " 5-" not in "".join(said)


def test_a_table_of_copies_alone_leaves_nothing(run: crlf.Run, photo: Path, tmp_path: Path):
    table = crlf.embed(run, photo, out=tmp_path / "t.parquet", device="cpu")
    assert crlf.search(run, [photo, photo], distinct=True, among=table, device="cpu") == [[], []]


# Pictures


def test_pictures_are_found_where_the_table_says(run: crlf.Run, photo: Path, tmp_path: Path):
    five = IMAGES[5].transpose(1, 2, 0)
    assert np.array_equal(pictures("shapes", ["train/00005"])["train/00005"], five)
    np.save(tmp_path / "a.npy", IMAGES)
    found = pictures(str(tmp_path / "a.npy"), ["a.npy/00005", "a.npy/00099", "a.npy/x"])
    assert list(found) == ["a.npy/00005"] and np.array_equal(found["a.npy/00005"], five)
    (tmp_path / "l.txt").write_text(photo.name)
    for source in (tmp_path, tmp_path / "l.txt", photo):
        [(name, image)] = pictures(str(source), [photo.name]).items()
        assert name == photo.name and image.shape == (128, 128, 3)
        assert np.abs(image[::4, ::4].mean(axis=(0, 1)) - five.mean(axis=(0, 1))).max() < 4
    assert pictures(str(tmp_path), ["gone.png"]) == pictures(str(tmp_path / "b.npy"), ["b.npy/0"]) == {}


def test_a_gallery_has_a_line_for_ten_neighbours():
    tile = Tile(np.full((8, 8, 3), 90, np.uint8), ("0.5", "a name that is far too long for this.png"))
    sizes = [Image.open(io.BytesIO(gallery([(tile, [tile] * n)]))).size for n in (1, ACROSS, ACROSS + 1, 3 * ACROSS)]
    heights = [height for _, height in sizes]
    assert heights[0] == heights[1] < heights[2] < heights[3] and sizes[1][0] == sizes[3][0]
    assert gallery([(Tile(None, ("gone",)), [])])[:4] == b"\x89PNG"
    assert short("x" * 30 + ".png") == "…" + "x" * 11 + ".png" and short("a\tb") == "a?b"


# Bad input


def test_what_cannot_be_searched_is_one_line(run: crlf.Run, photo: Path, tmp_path: Path):
    (tmp_path / "text.parquet").write_text("no table")
    with (tmp_path / "short.parquet").open("wb") as file, Writer(file, 3, "") as writer:
        writer.add(["a"], np.ones((1, 3), np.float32))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "x": [1]}), tmp_path / "other.parquet")
    cases = {
        (): "no image to search with: name one or more image files",
        ("no.png",): "image 'no.png' cannot be used",
        (str(photo), "-k", "0"): "k must be 1 or more, not 0",
        (str(photo), "-k", "many"): "many",
        (str(photo), "--among", "no.parquet"): "table 'no.parquet' does not exist",
        (str(photo), "--among", str(tmp_path / "text.parquet")): "cannot be read as Parquet",
        (str(photo), "--among", str(tmp_path / "short.parquet")): "must hold embeddings of length 1792, as this run's",
        (str(photo), "--among", str(tmp_path / "other.parquet")): "must have a column id and a column embedding",
        (str(photo), "--figure", "g.jpg"): "figure 'g.jpg' must end in .png",
        (str(photo), "--figure", str(tmp_path / "no" / "g.png")): "cannot be written",
    }
    for words, expected in cases.items():
        found = "--figure" in words and "no" in Path(words[-1]).parts  # what was found is said before it is drawn
        assert expected in refused("search", str(run.path), *words, "--device", "cpu", alone=not found)


def test_a_run_that_was_not_embedded(tmp_path: Path, photo: Path):
    made = crlf.pretrain(TINY, out=tmp_path / "run", device="cpu")
    line = refused("search", str(made.path), str(photo), "--device", "cpu")
    assert f"embeddings.parquet' is missing: `crlf embed {made.path}` makes it" in line
