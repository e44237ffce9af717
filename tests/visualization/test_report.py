"""The report: one file that loads nothing, believes nothing that it reads, and says what is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sampling import some
from sklearn.metrics import confusion_matrix, recall_score
from tiny_run import CIFAR, HOSTILE, fake_run, pictures

from crlf.data.thumbnails import sample
from crlf.errors import InputError
from crlf.evaluation import crops
from crlf.runs.files import save_array, write_json
from crlf.runs.run import CLASSES, ENCODER, FIGURES, FILES, MAPS, RECIPE, REPORT, SCORES, THUMBNAILS, Run
from crlf.text import duration, size
from crlf.visualization.figures import curves
from crlf.visualization.figures.projections import maps
from crlf.visualization.report import appendix, report, verdict
from crlf.visualization.report.appendix import HOLDS
from crlf.visualization.report.confusion import DEEP, tone
from crlf.visualization.report.html import plain, render, unbroken
from crlf.visualization.report.pictures import across, contact_sheet, shown
from crlf.visualization.report.plots import SHAPES

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


class Page(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += "\n" if tag in ("th", "td", "div") else ""
        if tag not in ("meta", "img", "input", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def figures(self) -> list[dict[str, str | None]]:
        """The figures of the run folder; other pictures are drawn by the report."""
        return [image for image in self.all("img") if "loading" in image]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(run: Run) -> Page:
    path = report(run)
    assert path == run.file("report.html")
    return Page(path.read_text(encoding="utf-8").replace("\u00a0", " "))


def picture(path: Path, description: str | None = None, wide: int = 40, high: int = 30) -> None:
    info = PngInfo()
    if description is not None:
        info.add_itxt("Description", description)
    Image.new("RGB", (wide, high), "white").save(path, pnginfo=info)


def whole(path: Path) -> Run:
    """A run with every file, its figures drawn by a cheap hand."""
    run = fake_run(path)
    for name in FIGURES:
        picture(run.file(name), f"The {name} of this run.")
    maps(run)
    for name in FILES:
        if not run.file(name).exists() and name != REPORT:
            run.file(name).write_bytes(b"something")
    run.update_scores(
        linear_accuracy=0.71734,
        views_seen=1_996_800,
        device="a processor",
        protocol={"linear": "logistic regression", "knn": "k = 10, cosine"},
        embed_seconds=61.0,
        probe_seconds=5.0,
        draw_seconds=4.5,
    )
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    return copied(made, tmp_path / "run")


def copied(made: Run, path: Path) -> Run:
    return Run(Path(shutil.copytree(made.path, path)))


def test_it_says_first_how_good_against_what_and_in_how_long(run: Run):
    text = read(run).text
    parts = [
        "gets 71.7 % of the test images right",
        "nearest neighbours 87.6 %",
        "most frequent class gets 12.3 %",
        "in 1 min 23 s: 3 epochs over 1,996,800 views on a processor",
        "took 1 min 10 s",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)
    assert "Not there yet" not in text


def test_each_number_at_the_head_stands_by_its_own_name(run: Run):
    """As tiles, as bars, and in the table."""
    page = read(run)
    tiles = re.findall(r'<div class="tile card"><b>([^<]*)</b><span class="soft">([^<]*)</span>', page.html)
    assert {name: value for value, name in tiles} == {
        "linear probe": "71.7 %",
        "kNN": "87.6 %",
        "chance": "12.3 %",
        "training": "1 min 23 s",
    }
    assert bars(page.html) == [
        ("Linear probe", "own", "this encoder", "57.4", "71.7 %"),
        ("Linear probe", "chance", "most frequent class", "9.8", "12.3 %"),
        ("Nearest neighbours (kNN)", "own", "this encoder", "70.1", "87.6 %"),
        ("Nearest neighbours (kNN)", "chance", "most frequent class", "9.8", "12.3 %"),
    ]
    rows = (
        ("Nearest neighbours (kNN)", "87.6 %"),
        ("Linear probe", "71.7 %"),
        ("Chance: always the most frequent class", "12.3 %"),
    )
    for name, value in rows:
        assert re.search(rf'<th scope="row">{re.escape(name)}</th><td>{value}', page.html)


def bars(html: str) -> list[tuple[str, ...]]:
    """The measure of each bar, its colour's class, name, width and number, as they stand."""
    groups = re.findall(
        r'<figure class="contest"><figcaption>([^<]*)</figcaption>(.*?)</div></figure>', html, flags=re.DOTALL
    )
    one = (
        r'<div>([^<]*)</div><div class="track"><div class="bar ([^"]*)" style="width:([\d.]+)%"></div><b[^>]*>([^<]*)<'
    )
    return [
        (title, kind, name, width, value)
        for title, within in groups
        for name, kind, width, value in re.findall(one, within)
    ]


def test_bars_stand_by_measure_the_longest_first_each_kind_in_its_colour(run: Run):
    run.update_scores(
        pixels_linear_accuracy=0.41, untrained_linear_accuracy=0.83, linear_interval=[0.7, 0.74],
        pixels_knn_accuracy=0.05, untrained_knn_accuracy=0.3, cluster_accuracy=0.25,
    )  # fmt: skip
    page = read(run)
    assert [(title, kind, value) for title, kind, _, _, value in bars(page.html)] == [
        ("Linear probe", "untrained", "83.0 %"),
        ("Linear probe", "own", "71.7 %"),
        ("Linear probe", "raw", "41.0 %"),
        ("Linear probe", "chance", "12.3 %"),
        ("Nearest neighbours (kNN)", "own", "87.6 %"),
        ("Nearest neighbours (kNN)", "untrained", "30.0 %"),
        ("Nearest neighbours (kNN)", "chance", "12.3 %"),
        ("Nearest neighbours (kNN)", "raw", "5.0 %"),
        ("Other measures", "own", "25.0 %"),
    ]
    assert page.html.count('class="whisker" title="95 % interval: 70.0 % to 74.0 %"') == 1
    grounds = [
        re.search(rf"\.bar{kind} {{ background: ([^;]*);", page.html) for kind in (".untrained", ".raw", ".chance")
    ]
    assert len({found[1] for found in grounds if found}) == 3


def test_views_of_the_report_have_their_originals_on_top(run: Run):
    [source] = [image["src"] for image in read(run).all("img") if str(image["alt"]).startswith("Views: ")]
    with Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2]))) as image:
        pixels, tiles = np.asarray(image.convert("RGB")), run.array("views.npy")
    for i in range(10):
        for row in range(3):
            tile = pixels[9 * row : 9 * row + 8, 9 * i : 9 * i + 8]
            assert (tile == tiles[i, row].transpose(1, 2, 0)).all(), (i, row)


def test_the_sections_and_their_order(run: Run):
    page = read(run)
    found = re.findall(r'<section id="([\w-]+)">\n<h2>', page.html)
    shown = ["maps", "neighbours", "confusion", "mistakes", "training", "views"]
    assert found == [*shown, "numbers", "settings", "repeat-it", "figures", "files"]
    assert re.findall(r'<a href="#([\w-]+)">', page.html.partition("<main>")[0]) == found


def test_figures_are_inlined_in_order_with_alt_texts(run: Run):
    images = read(run).figures()
    assert len(images) == len(FIGURES)
    for name, image in zip(FIGURES, images, strict=True):
        head, data = str(image["src"]).split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == run.file(name).read_bytes()
        assert image["alt"] == f"The {name} of this run."
        assert (image["width"], image["height"]) == ("40", "30")


def test_a_figure_that_says_nothing_of_itself_has_an_alt_text(run: Run):
    picture(run.file("views.png"))
    assert read(run).figures()[-2]["alt"] == HOLDS["views.png"]


def test_it_loads_nothing(run: Run):
    page = Page(report(run).read_text(encoding="utf-8"))
    policy = str(page.all("meta")[1]["content"])
    scripts = re.findall(r"<script>(.*?)</script>", page.html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    assert len(scripts) == 3 and policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    loads = {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "source", "svg"}
    assert not loads & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "action")]
        assert str(attributes.get("src", "data:")).startswith("data:") and str(attributes.get("href", "#"))[0] == "#"
    without = re.sub(r"<script>.*?</script>|base64,[\w+/=]*", "", page.html, flags=re.DOTALL)
    assert not re.search(r"url\((?!data:)|@import|https?:|//[a-z][\w-]*\.", without)  # //k may stand in base64


def test_it_is_a_page_for_phones_and_for_the_night(run: Run):
    page = read(run)
    assert page.html.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in page.html and "max-width: 46rem" in page.html
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", *["h2"] * 11]


@pytest.mark.parametrize("evil", some([EVIL, *HOSTILE], 3))
def test_what_comes_from_files_is_text(evil: str, made: Run, tmp_path: Path):
    run = copied(made, tmp_path / ("run" + re.sub("[/\ud800\n]", "", evil)))
    write_json(run.file(CLASSES), [evil] * 10)
    write_json(run.file(RECIPE), {"method": evil, evil: evil, "head": {evil: evil}, "data": evil})
    run.update_scores(device=evil, epochs=evil, **{evil: evil}, protocol={"linear": evil})
    picture(run.file("views.png"), evil.encode("utf-8", "replace").decode())
    page = read(run)
    tags = {tag for tag, _ in page.tags} - {tag for tag, _ in read(copied(made, tmp_path / "tame")).tags}
    assert tags == set(), "a name became a tag"
    assert len(page.figures()) == len(FIGURES)
    assert page.html.count("<script") == 4  # three programs, and their data
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    if evil == EVIL:
        assert evil in page.text and evil not in page.html


def test_escaping_is_left_to_the_templates():
    """What is called safe is the page's own: its files, its JSON, and what a template made."""
    folder = Path(appendix.__file__).parent
    assert not [
        path.name for path in folder.glob("templates/*") if re.search(r"\|\s*safe|autoescape", path.read_text())
    ]
    calls = {path.name: len(re.findall(r"Markup\(", path.read_text())) for path in folder.glob("*.py")}
    assert {name: count for name, count in calls.items() if count} == {"html.py": 1, "page.py": 2, "plots.py": 1}


def test_every_setting_is_shown_by_section(run: Run):
    text = read(run).text
    recipe = run.settings
    for name, value in recipe.items():
        assert re.search(rf"\b{name}\b", text)
        for key, setting in value.items() if isinstance(value, dict) else [(name, value)]:
            assert re.search(rf"{key}\s*{re.escape(plain(setting))}", text), key


def test_every_number_is_shown_with_its_protocol(run: Run):
    run.update_scores(few_label_accuracy=0.5, a_list=[1, 2.5], nothing=None)
    text = read(run).text
    for expected in (
        "logistic regression",
        "k = 10, cosine",
        "few label accuracy",
        "50.0 %",
        "1, 2.5",
        "Training time",
    ):
        assert expected in text
    assert text.count("50.0 %") == 2  # a bar of its own, too


def test_numbers_have_names_units_and_few_decimals(run: Run):
    run.update_scores(
        linear_interval=[0.70123, 0.73456],
        linear_over_untrained={"difference": 0.14190000000000003, "interval": [-0.0132, 0.151]},
        knn={"majority": {"1": 0.7049, "10": 0.7276}},
        few_label={"1 a class": {"labels": 10, "mean": 0.34217, "sd": 0.0312}},
        robustness={"noise": [0.71, 0.655]},
        cluster_nmi=0.371234567, calibration_error=0.009668, image_shape=[3, 32, 32], pflop=0.103146061824,
    )  # fmt: skip
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)', read(run).html))
    assert {name: rows.get(name) for name in NUMBERS} == NUMBERS
    assert not [name for name in rows if name.endswith("_interval") or "_accuracy" in name]


NUMBERS = {
    "Linear probe": "71.7 % (95 % interval: 70.1 to 73.5 %)",
    "Linear probe: gain over the untrained encoder": "+14.2 points (95 % interval: −1.3 to +15.1)",
    "kNN by the number of neighbours k": "majority: 70.5 % (k = 1), 72.8 % (k = 10)",
    "Linear probe, fitted on few labels": "1 a class: 34.2 ± 3.1 % (10 labels)",
    "Linear probe by corruption, at strengths 1 to 5": "noise: 71.0, 65.5 %",
    "k-means clusters: normalised mutual information (1 is best)": "0.3712",
    "Calibration error of the linear probe": "1.0 %",
    "Image (channels × height × width)": "3 × 32 × 32",
    "Training time": "1 min 23 s",
    "Arithmetic": "0.1031 PFLOP",
}


def test_of_many_classes_the_confusions_are_listed(tmp_path: Path):
    """Against a count by hand: the most frequent first, and the classes by the share that is right."""
    run = fake_run(tmp_path / "run", tuple(f"kind {k}" for k in range(24)), n=480)
    labels = np.arange(480) % 24
    predicted = labels.copy()
    predicted[labels == 3] = [7] * 11 + [5] * 4 + [3] * 5
    predicted[labels == 20] = [2] * 9 + [20] * 11
    np.save(run.file("test_lbl.npy"), labels)
    np.save(run.file("test_pred.npy"), predicted)
    maps(run)
    html = read(run).html
    found = re.findall(r'data-true="(\d+)" data-said="(\d+)" aria-label="([^"]*)"', html)
    assert found == [
        ("3", "7", "kind 3 taken for kind 7: 11 of 20"),
        ("20", "2", "kind 20 taken for kind 2: 9 of 20"),
        ("3", "5", "kind 3 taken for kind 5: 4 of 20"),
    ]
    bars = re.findall(r"<bdi>(kind \d+)</bdi> <small>20</small></div>.*?<b>([^<]*)</b>", html)
    assert bars[:3] == [("kind 3", "25.0 %"), ("kind 20", "55.0 %"), ("kind 0", "100.0 %")] and len(bars) == 12


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.74, 0.75, 1.0])
@pytest.mark.parametrize("kind", ["right", "off"])
@pytest.mark.parametrize("night", [False, True])
def test_numbers_stand_out_from_their_cells(depth: float, kind: str, night: bool):
    """By at least 4.5 to 1 (WCAG AA), in the page's own colours, mixed in OKLab as the page does."""
    css = (Path(appendix.__file__).parent / "style.css").read_text()
    blocks = re.findall(r":root \{ (?:color-scheme: light dark; )?(--page.*?)\}", css, flags=re.DOTALL)
    found = re.findall(r"--([\w-]+): #(\w{6});", "".join(blocks[: 1 + night]))
    colours = {name: np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]) for name, digits in found}
    share = tone(depth) / 100 * (0.8 if kind == "off" else 1)
    ground = oklab_mix(colours["good" if kind == "right" else "wrong"], colours["card"], share)
    ink = colours["ink"] if depth < DEEP else colours["page"] if kind == "right" else np.array([14, 18, 23]) / 255
    bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(rgb: np.ndarray) -> float:
    return float(linear(rgb) @ [0.2126, 0.7152, 0.0722])


LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
"""Of linear sRGB (Ottosson 2020); OKLab is linear in the cube roots, so mixing needs these alone."""


def oklab_mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    roots = share * np.cbrt(LMS @ linear(a)) + (1 - share) * np.cbrt(LMS @ linear(b))
    rgb = np.clip(np.linalg.inv(LMS) @ roots**3, 0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def test_a_number_keeps_its_per_cent_sign_and_a_command_its_spaces():
    assert unbroken("10.0 % of 5 %") == "10.0\u00a0% of 5\u00a0%"
    command = render("repeat.html", command="crlf run --out 'run 5 %'")
    assert "run 5 %" in command and "\u00a0" not in command


def test_few_labels_and_corruptions_have_charts(run: Run):
    assert 'id="limits"' not in read(run).html
    run.update_scores(
        few_label={name: {"labels": n, "mean": n / 100, "sd": 0.01} for name, n in (("10 a class", 50), ("1 %", 10))},
        robustness={"noise": [0.7, 0.6], "blur": [0.8, 0.75]},
    )
    page = read(run)
    assert page.text.count("Few labels and corrupted images") == 2  # the contents, and the heading
    plots = json.loads(re.search(r'id="data">(.*?)</script>', page.html)[1])["plots"]  # type: ignore[index]
    assert columns(plots["limit-few-labels"], "x") == [[10, 50]]
    assert columns(plots["limit-few-labels"], "value") == [[0.1, 0.5]]
    assert columns(plots["limit-few-labels"], "low") == [[pytest.approx(0.09), pytest.approx(0.49)]]
    assert columns(plots["limit-corruptions"], "value") == [[0.7, 0.6], [0.8, 0.75]]
    assert "dashed: on the images as they are, 71.7 %" in page.text
    run.update_scores(few_label={"10 a class": {"labels": 50, "mean": 0.5, "sd": 0.01}, "1 %": None})
    assert "10 a class (50 labels) 50.0 ± 1.0 %" in read(run).text


def columns(plot: object, name: str) -> list[object]:
    """A column of each data source of a Bokeh plot."""
    found = {match[1]: json.loads(match[2]) for match in re.finditer(
        r'"name": "ColumnDataSource", "id": "(\w+)", .*?"' + name + r'", (\[[^\]]*\])', json.dumps(plot))}  # fmt: skip
    return list(found.values())


def test_the_neighbours_of_a_labelled_run_are_test_images_and_it_says_so(run: Run):
    assert "test images only, no training image is searched" in read(run).text
    run.update_scores(cross_validated=True)
    shutil.copy(run.file("test_ids.json"), run.file("train_ids.json"))
    assert "no training image is searched" not in read(run).text


def test_chips_have_the_colours_and_the_shapes_of_the_map(tmp_path: Path):
    run = fake_run(tmp_path, tuple(f"class {k}" for k in range(24)), n=96)
    maps(run)
    page, found = read(run), shown(run)
    assert found is not None and found.labels is not None
    dots = re.findall(r'class="chip"[^>]*><i class="dot c(\d) s(\d)"', page.html)
    assert dots == [(str(k % 10), str(k // 10)) for k in range(24)]
    plots = json.loads(re.search(r'id="data">(.*?)</script>', page.html)[1])["plots"]  # type: ignore[index]
    shapes = re.search(r'"shape", (\[[^\]]*\])', json.dumps(plots["map-plot"]))
    assert shapes is not None and json.loads(shapes[1]) == [SHAPES[k // 10] for k in found.labels[:96].tolist()]
    assert "only" in page.text and all(f".s{k} {{" in page.html for k in range(2, 10))


@pytest.mark.parametrize(
    ("data", "name"), [("/a/b/my photos/", "my photos"), ("list.txt", "list.txt"), ("stl10", "STL-10")]
)
def test_the_heading_names_the_folder_and_no_path(data: str, name: str, run: Run):
    write_json(run.file(RECIPE), run.settings | {"data": data})
    assert read(run).text.count(f"SimCLR on {name}: what the encoder learned") == 2  # the tab, and the heading


def test_every_file_of_a_run_is_described(run: Run):
    assert set(HOLDS) == set(FILES)
    text = read(run).text
    for name in set(FILES) - {REPORT}:
        assert HOLDS[name] in text


def test_what_the_script_is_told(run: Run):
    page = read(run)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.html)[1])  # type: ignore[index]
    images, rows = data["images"], sample(100)
    assert images["group"][:100] == run.array("test_lbl.npy")[rows].tolist()
    assert images["predicted"][:100] == run.array("test_pred.npy")[rows].tolist()
    assert images["sure"][:100] == pytest.approx(run.array("test_prob.npy").max(axis=1)[rows], abs=1e-3)
    assert images["ids"][:100] == [f"test/{row:05}" for row in rows]
    assert set(data["plots"]) == {"map-plot", *(f"curve-{n}" for n in ("loss", *curves.HEALTH))}


def test_what_was_measured_once_is_a_number_and_no_chart(run: Run):
    rows = [row for row in run.log() if row["step"] <= 10]
    run.file("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = read(run)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.html)[1])  # type: ignore[index]
    assert set(data["plots"]) == {"map-plot", "curve-loss"}
    assert 'id="curve-rankme"' not in page.html
    h, z = (rows[-1][f"{place}_rankme"] for place in "hz")
    assert f"h, the embedding {h:.3g} at epoch 1; z, the projection {z:.3g} at epoch 1" in page.text
    run.file("log.jsonl").write_text(json.dumps(rows[0]) + "\n")
    text = read(run).text
    assert "loss 3.77 at epoch 0.2" in text and "Against" not in text and "dashed" not in text


def test_the_sheet_holds_the_images(run: Run):
    found = shown(run)
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(contact_sheet(found.thumbnails).partition(",")[2]))) as sheet:
        pixels = np.asarray(sheet.convert("RGB"), dtype=int)
    columns = across(len(found), 8, 8)
    for i, row in enumerate(sample(100)):
        middle = pixels[i // columns * 8 + 4, i % columns * 8 + 4]
        assert np.abs(middle - pictures(100)[row, 0, 0]).max() < 90, i  # WebP blurs colours over 8 pixels
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_confusion_table_is_scikit_learns(run: Run):
    """A row is a class: what is said of each cell, and the share of each row that is right."""
    labels, predicted = run.array("test_lbl.npy"), run.array("test_pred.npy").copy()
    predicted[labels == 2] = 7  # so that rows and columns differ
    save_array(run.file("test_pred.npy"), predicted)
    page = read(run)
    found = re.findall(r'data-true="(\d+)" data-said="(\d+)" aria-label="([^"]*)"', page.html)
    said = {(int(i), int(j)): text for i, j, text in found}
    counts = confusion_matrix(labels, predicted, labels=range(10))
    for i, j in np.ndindex(10, 10):
        words = f"{CIFAR[i]} recognised" if i == j else f"{CIFAR[i]} taken for {CIFAR[j]}"
        assert said[i, j] == f"{words}: {counts[i, j]}"
    recalls = [f"{100 * r:.1f} %" for r in recall_score(labels, predicted, average=None)]
    assert re.findall(r'<td class="recall">([^<]*)</td>', page.html) == recalls


def test_the_most_confident_mistakes_come_first(run: Run):
    labels, predicted, sure = (run.array(f"test_{name}.npy") for name in ("lbl", "pred", "prob"))
    wrong = np.flatnonzero(labels != predicted)
    expected = wrong[np.argsort(-sure.max(axis=1)[wrong])]
    names = [
        text for tag, a in read(run).tags if (text := a.get("aria-label")) and "taken for" in text and ": test" in text
    ]
    assert [name.partition(": ")[2] for name in names] == [f"test/{row:05}" for row in expected[:50]]


def test_mistakes_that_are_no_points_of_the_maps_have_pictures(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crlf.visualization.figures.projections.SHOWN", 20)
    run.file(MAPS).unlink()
    maps(run)
    found = shown(run)
    assert found is not None and found.points == 20
    wrong = int((run.array("test_lbl.npy") != run.array("test_pred.npy")).sum())
    assert len(found.mistakes) == min(50, wrong) and max(found.mistakes) >= 20
    assert all(found.labels[i] != found.predicted[i] for i in found.mistakes)  # type: ignore[index]
    rows = [int(name.removeprefix("test/")) for name in found.ids]
    assert (found.thumbnails == pictures(100)[rows]).all()


def test_images_of_an_unlabelled_folder_have_the_names_of_their_files(run: Run):
    """No test images are held out then: what is shown are the training images, whose names are in train_ids.json."""
    rows = run.array("test_emb.npy")
    for name in ("test_lbl.npy", "test_pred.npy", "test_prob.npy", CLASSES, MAPS):
        run.file(name).unlink()
    save_array(run.file("train_emb.npy"), rows), save_array(run.file("test_emb.npy"), rows[:0])
    write_json(run.file("train_ids.json"), [f"holiday/{row}.jpg" for row in range(100)])
    write_json(run.file("test_ids.json"), [])
    maps(run)
    found = shown(run)
    assert found is not None and found.split == "training"
    assert found.ids[:100] == [f"holiday/{row}.jpg" for row in sample(100)]
    write_json(run.file("train_ids.json"), ["holiday/0.jpg"])
    with pytest.raises(InputError, match=r"train_ids\.json must hold 100 names, not 1"):
        shown(run)


def test_maps_of_other_embeddings_are_not_shown(run: Run):
    save_array(run.file("test_emb.npy"), 2 * run.array("test_emb.npy"))
    text = read(run).text
    assert "maps of these embeddings" in text and f"crlf draw {run.path}" in text
    assert "Most confident mistakes" not in text


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (THUMBNAILS, np.zeros((99, 8, 8, 3), np.uint8), "thumbnails.npy must be uint8 (100, h, w, 3)"),
        ("test_prob.npy", np.zeros((100, 2), np.float32), "test_prob.npy must be (100, K)"),
        ("test_pred.npy", np.zeros(99, np.int64), "test_pred.npy must have 100 rows, not 99"),
    ],
)
def test_files_that_do_not_fit_are_said(run: Run, name: str, array: np.ndarray, says: str):
    save_array(run.file(name), array)
    with pytest.raises(InputError, match=re.escape(says)) as error:
        report(run)
    assert "\n" not in str(error.value) and not run.file(REPORT).exists()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_names_that_do_not_fit_are_said(run: Run, text: str):
    run.file("test_ids.json").write_text(text)
    with pytest.raises(InputError, match=r"test_ids\.json"):
        report(run)


def test_damaged_maps_are_said(run: Run):
    run.file(MAPS).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"maps\.npz' cannot be read as maps"):
        report(run)


def test_importing_crlf_does_not_wait_for_bokeh():
    program = "import sys, crlf; sys.exit(bool({'bokeh', 'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", ["plain", "with a space", "quote'", "$(reboot)"])
@pytest.mark.parametrize(("argv", "program"), [("bin/crlf", "crlf run"), ("simclr_train.py", "python simclr_train.py")])
def test_the_command_that_repeats_the_run(
    name: str, argv: str, program: str, made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It names the program that ran."""
    monkeypatch.setattr(sys, "argv", [argv])
    run = copied(made, tmp_path / name)
    [line] = [line for line in read(run).text.splitlines() if line.startswith(f"{program} --recipe")]
    words = shlex.split(line)
    assert words[2:] == ["--recipe", str(run.file("recipe.json")), "--out", f"{run.path}_again"]


# Stages that were not run

STAGES = {
    "pretrain": [ENCODER],
    "embed": ["test_emb.npy", "test_lbl.npy", "train_emb.npy", "train_lbl.npy"],
    "probe": ["test_pred.npy", "confusion_matrix.png"],
    "draw": list(FIGURES),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_is_named_with_its_command(stage: str, run: Run):
    for name in STAGES[stage]:
        run.file(name).unlink()
    if stage == "probe":
        scores = {key: value for key, value in run.scores.items() if key not in ("linear_accuracy", "knn_accuracy")}
        write_json(run.file(SCORES), scores)
    page = read(run)
    flags = "--resume --out " if stage == "pretrain" else ""
    assert f"crlf {stage} {flags}{run.path}\n" in page.text
    assert f"crlf report {run.path}\n" in page.text
    assert len(page.figures()) == sum(run.file(name).exists() for name in FIGURES)
    if stage == "probe":
        assert "was not measured yet" in page.text


def test_a_run_that_has_just_begun(tmp_path: Path):
    run = Run(tmp_path)
    write_json(run.file(RECIPE), {"method": "simclr", "data": "cifar10"})
    text = read(run).text
    commands = [line.split()[1] for line in text.splitlines() if line.startswith("crlf ")]
    assert commands == ["pretrain", "embed", "probe", "draw", "report", "run"]  # the last one repeats it


def without_labels(run: Run, **scores: object) -> Page:
    """Its report, were its images not labelled."""
    labelled = ("test_lbl.npy", "train_lbl.npy", "test_pred.npy", "test_prob.npy", "classes.json")
    for name in (*labelled, "confusion_matrix.png"):
        run.file(name).unlink(missing_ok=True)
    write_json(run.file(SCORES), {"train_seconds": 5.0, **scores})
    return read(run)


def test_without_labels_the_crops_are_to_be_probed(run: Run):
    text = without_labels(run).text
    assert "Not there yet: how often a crop finds its image." in text and f"crlf probe {run.path}\n" in text
    assert "not measured yet: the images have no labels" in text
    text = without_labels(run, protocol={"crops": "not measured: the folder is gone"}).text
    assert "Not there yet" not in text and "was not measured: the folder is gone." in text


def test_without_labels_it_leads_with_the_crops(run: Run):
    gain = {"difference": 0.5, "interval": [0.4, 0.61]}
    page = without_labels(run, crops_accuracy=0.75, untrained_crops_accuracy=0.25, crops_over_untrained=gain)
    lead = re.search(r'<p class="lead">([^<]*)', page.html)
    assert lead is not None and lead[1] == (
        "Given a new random crop of an image, the encoder finds that image among 100 in 75.0 % of the cases. "
        "Before training it did so in 25.0 %. Chance is 1.0 %."
    )
    assert "Training paid: +50.0 points over the encoder before training (95 % interval: +40.0 to +61.0)." in page.text
    tiles = re.findall(r'<div class="tile card"><b>([^<]*)</b><span class="soft">([^<]*)</span>', page.html)
    assert tiles[0] == ("75.0 %", "of crops find their image") and tiles[-1][1] == "dimensions in use (RankMe)"
    assert [(kind, value) for _, kind, _, _, value in bars(page.html)] == [
        ("own", "75.0 %"), ("untrained", "25.0 %"), ("chance", "1.0 %"),
    ]  # fmt: skip


def test_the_report_knows_among_how_many_images_a_crop_is_looked_for():
    assert verdict.SEARCHED == crops.IMAGES


def test_labels_need_no_new_training(run: Run):
    text = without_labels(run).text
    assert f"crlf finetune {run.path} LABELLED_FOLDER\n" in text
    assert (
        f"crlf run LABELLED_FOLDER --init {run.file(ENCODER)} --encoder cnn --epochs 0 --out {run.path}_labelled\n"
        in text
    )


def test_a_damaged_figure_is_a_missing_one(run: Run):
    run.file("views.png").write_bytes(b"nothing")
    page = read(run)
    assert len(page.figures()) == len(FIGURES) - 1
    assert "figures (views.png)" in page.text and f"crlf draw {run.path}" in page.text


def test_the_same_run_gives_the_same_bytes(run: Run):
    first = report(run).read_bytes()
    assert report(str(run.path)).read_bytes() == first


def test_numbers_that_were_not_finite(run: Run):
    run.update_scores(linear_accuracy=None, knn_accuracy=float("nan"), chance=None, train_seconds=None)
    assert "was not measured" in read(run).text


def test_not_a_run(tmp_path: Path):
    with pytest.raises(InputError, match="holds no run"):
        report(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="JSON object"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (83, "1 min 23 s"), (3599.7, "1 h 0 min"), (7384, "2 h 3 min")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1010, "1.01 kB"), (51_200_128, "51.2 MB"), (2e9, "2 GB")],
)
def test_sizes(count: float, text: str):
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, "–"),
        (1234567, "1,234,567"),
        (3e-4, "0.0003"),
        ([0.5, 1], "0.5, 1"),
        ({"a": 0.5, "b": [1]}, "a: 0.5; b: 1"),
    ],
)
def test_plain(value: object, text: str):
    assert plain(value) == text
