"""The report in a real browser, headless: nothing is requested or complained about, and what it shows is right."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import CIFAR, HOSTILE, fake_run, pictures

from crlf.data.thumbnails import sample
from crlf.runs.files import write_json
from crlf.runs.run import REPORT, Run
from crlf.visualization.figures.projections import maps
from crlf.visualization.report import report

pytestmark = pytest.mark.long

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
N = 120


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The first Chromium that is installed: the system's, or playwright's own."""
    with sync_api.sync_playwright() as play:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None and not Path(play.chromium.executable_path).exists():
            pytest.skip(
                "no Chromium is installed (`playwright install chromium`): the report is not tried in a browser"
            )
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """An open report, and all that the browser requested or complained about."""

    def __init__(self, browser: Any, run: Run, wide: int = 1280, scheme: str = "light"):
        self.page = browser.new_page(viewport={"width": wide, "height": 900}, color_scheme=scheme)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type != "info" else None)
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.set_default_timeout(20_000)
        self.page.goto(run.file(REPORT).as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")
        self.page.wait_for_timeout(150)  # the plots are laid out once more when their width is known

    def point(self, i: int) -> tuple[float, float]:
        """Where image i lies on the screen."""
        self.page.locator("#map-frame").scroll_into_view_if_needed()
        return tuple(self.page.evaluate(  # type: ignore[return-value]
            """(i) => { const map = Bokeh.documents.map((d) => d.roots()[0]).find((r) => r.name === "map");
            const data = map.renderers.find((r) => r.name === "points").data_source.data;
            const box = document.getElementById("map-plot").getBoundingClientRect();
            const rim = (box.height - map.inner_height) / 2;  // of Bokeh, around the frame
            const share = (value, range) => (value - range.start) / (range.end - range.start);
            return [box.left + rim + share(data.tsne_x[i], map.x_range) * map.inner_width,
                    box.top + rim + (1 - share(data.tsne_y[i], map.y_range)) * map.inner_height]; }""", i))  # fmt: skip

    def column(self, name: str) -> list[Any]:
        """A column of the map's points."""
        return self.page.evaluate(
            """(name) => [...Bokeh.documents.map((d) => d.roots()[0]).find((r) => r.name === "map")
            .renderers.find((r) => r.name === "points").data_source.data[name]]""", name)  # fmt: skip

    def card(self) -> dict[str, str]:
        names, texts = (self.page.locator(f"#face {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(names, texts, strict=True))

    def colour(self, selector: str) -> np.ndarray:
        """The colour in the middle of an element, as drawn: (3,)."""
        shot = self.page.locator(selector).screenshot()
        with Image.open(io.BytesIO(shot)) as image:
            return np.asarray(image.convert("RGB"), dtype=int)[image.height // 2, image.width // 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = fake_run(tmp_path_factory.mktemp("run"), n=N, side=32)
    maps(run)
    report(run)
    return run


@pytest.fixture(scope="module")
def visit(browser: Any, run: Run) -> Visit:
    return Visit(browser, run)


def test_it_loads_without_a_request_or_a_complaint(visit: Visit, run: Run):
    assert [url for url in visit.requests if not url.startswith("data:")] == [run.file(REPORT).as_uri()]
    assert visit.complaints == []
    assert visit.page.locator("#map-plot canvas, #map-plot .bk-Figure").count() >= 1


@pytest.mark.parametrize("i", [0, 17, 63])
def test_hover_shows_the_right_image(visit: Visit, run: Run, i: int):
    row = int(sample(N)[i])
    visit.page.mouse.move(*visit.point(i))
    labels, predicted = run.array("test_lbl.npy"), run.array("test_pred.npy")
    visit.page.wait_for_function(
        "(id) => document.querySelector('#face dd.soft')?.textContent === id", arg=f"test/{row:05}"
    )
    card = visit.card()
    sure = run.array("test_prob.npy")[row].max()
    assert card["class"] == CIFAR[labels[row]]
    assert card["probe"].startswith(f"{CIFAR[predicted[row]]}, {100 * sure:.0f} % sure")
    assert card["probe"].endswith("wrong") == (labels[row] != predicted[row])
    for selector in ("#face > .pic", "#peek"):
        assert np.abs(visit.colour(selector) - pictures(N)[row, 0, 0]).max() < 16, selector
    shown = visit.page.locator("#face .near .pic").evaluate_all("all => all.map((e) => Number(e.dataset.image))")
    embeddings = run.array("test_emb.npy")[sample(N)].astype(float)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = [k for k in np.argsort(-(unit @ unit[i])) if k != i][:8]
    assert shown == expected


def test_a_chip_isolates_its_class(visit: Visit, run: Run):
    labels = run.array("test_lbl.npy")[sample(N)]
    chip = visit.page.locator(".chip").nth(3)
    assert chip.inner_text().startswith("cat")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert [alpha > 0.5 for alpha in visit.column("alpha")] == (labels == 3).tolist()
    chip.click()
    assert min(visit.column("alpha")) > 0.5


def test_the_map_names_its_classes_without_overlap(visit: Visit, run: Run):
    boxes = visit.page.locator("#layer .name").evaluate_all(
        "all => all.map((e) => { const b = e.getBoundingClientRect(); "
        "return [(b.left + b.right) / 2, (b.top + b.bottom) / 2, b.width, b.height]; })"
    )
    names = visit.page.locator("#layer .name").all_inner_texts()
    assert len(names) >= 3 and set(names) <= set(CIFAR)
    for i, (x, y, wide, high) in enumerate(boxes):
        apart = [abs(x - u) >= (wide + w) / 2 or abs(y - v) >= (high + h) / 2 for u, v, w, h in boxes[:i]]
        assert all(apart), names[i]
    visit.page.locator(".chip").nth(3).click()
    sync_api.expect(visit.page.locator("#layer .name")).to_have_text([CIFAR[3]])
    visit.page.locator(".chip").nth(3).click()


def test_pictures_lie_on_their_points_and_do_not_cover_each_other(visit: Visit):
    visit.page.locator("input[value=pictures]").check()
    visit.page.wait_for_selector("#layer .pic")
    found = visit.page.locator("#layer .pic").evaluate_all(
        "all => all.map((e) => { const b = e.getBoundingClientRect(); "
        "return [+e.dataset.shows, b.left + b.width / 2, b.top + b.height / 2, b.width]; })"
    )
    assert len(found) >= 5
    for k, (i, x, y, side) in enumerate(found):
        assert np.hypot(x - visit.point(i)[0], y - visit.point(i)[1]) < 2
        assert all(max(abs(x - u), abs(y - v)) >= side for _, u, v, _ in found[:k])
    visit.page.locator("input[value=points]").check()
    visit.page.wait_for_selector("#layer .name")


def test_only_mistakes(visit: Visit, run: Run):
    wrong = (run.array("test_lbl.npy") != run.array("test_pred.npy"))[sample(N)]
    visit.page.locator("#wrong").check()
    assert [alpha > 0.5 for alpha in visit.column("alpha")] == wrong.tolist()
    visit.page.locator("#wrong").uncheck()


def test_colours_say_what_they_are_asked_for(visit: Visit, run: Run):
    wrong = (run.array("test_lbl.npy") != run.array("test_pred.npy"))[sample(N)]
    visit.page.locator("input[value=right]").check()
    fills = np.array(visit.column("fill"))
    assert len(set(fills[wrong])) == len(set(fills[~wrong])) == 1 and len(set(fills)) == 2
    visit.page.locator("input[value=sure]").check()
    dark = [255 * 3 - sum(map(int, fill[4:-1].split(","))) for fill in visit.column("fill")]
    sure = run.array("test_prob.npy").max(axis=1)[sample(N)]
    assert np.corrcoef(dark, sure)[0, 1] > 0.95
    visit.page.locator("input[value=group]").check()
    assert len(set(visit.column("fill"))) == len(CIFAR)


def test_the_map_by_keyboard(visit: Visit):
    frame = visit.page.locator("#map-frame")
    frame.focus()
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("ArrowRight")
    first = int(visit.page.locator("#face > .pic").get_attribute("data-shows"))
    visit.page.keyboard.press("ArrowRight")
    second = int(visit.page.locator("#face > .pic").get_attribute("data-shows"))
    xs = visit.column("tsne_x")
    assert xs[second] > xs[first]
    visit.page.keyboard.press("Enter")  # held: the pointer no longer changes it
    visit.page.mouse.move(*visit.point(first))
    visit.page.wait_for_timeout(50)
    assert int(visit.page.locator("#face > .pic").get_attribute("data-shows")) == second
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#peek").is_hidden()


def test_a_cell_of_the_confusion_matrix_shows_its_images(visit: Visit, run: Run):
    labels, predicted = (run.array(name)[sample(N)] for name in ("test_lbl.npy", "test_pred.npy"))
    true = labels[np.flatnonzero(labels != predicted)[0]]
    said = predicted[np.flatnonzero(labels != predicted)[0]]
    visit.page.locator(f"[data-true='{true}'][data-said='{said}']").click()
    shown = visit.page.locator("#cell .pic").evaluate_all("all => all.map((e) => Number(e.dataset.image))")
    assert shown == np.flatnonzero((labels == true) & (predicted == said)).tolist()


def test_a_mistake_is_enlarged_and_found_in_the_map(visit: Visit):
    button = visit.page.locator("#mistakes button").first
    image = button.get_attribute("data-image")
    button.click()
    assert visit.page.locator("#zoom-what > .pic").get_attribute("data-shows") == image
    assert visit.page.locator("#zoom-what > .pic").bounding_box()["width"] >= 4 * 64  # type: ignore[index]
    assert visit.page.locator("#zoom-what dd").nth(1).inner_text().endswith("wrong")
    visit.page.locator("#zoom-map").click()
    assert visit.page.locator("#zoom").is_hidden()
    assert visit.page.locator("#face > .pic").get_attribute("data-shows") == image
    assert visit.card()["probe"].endswith("wrong")
    visit.page.locator("#map-frame").press("Escape")


def test_a_picture_is_enlarged_by_enter_and_let_go_by_escape(visit: Visit):
    row = visit.page.locator("#neighbours .strip").first.locator("button")
    images = row.evaluate_all("all => all.map((e) => e.dataset.image)")
    row.nth(1).press("Enter")
    large = visit.page.locator("#zoom-what > .pic")
    assert large.get_attribute("data-shows") == images[1]
    visit.page.keyboard.press("ArrowRight")
    assert large.get_attribute("data-shows") == images[2]
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    assert large.get_attribute("data-shows") == images[0] and visit.page.locator("#zoom-before").is_disabled()
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#zoom").is_hidden()
    assert visit.page.evaluate("document.activeElement.dataset.image") == images[1]


def test_rows_of_neighbours_fill_the_page(visit: Visit):
    ends = visit.page.locator("#neighbours .strip").first.locator("button").last.bounding_box()
    page = visit.page.locator("#neighbours").bounding_box()
    assert page["x"] + page["width"] - 24 <= ends["x"] + ends["width"] <= page["x"] + page["width"] + 1


def test_a_phone_shows_every_class_and_whole_words(browser: Any, tmp_path: Path):
    run = fake_run(tmp_path, tuple(f"a class of number {k}" for k in range(24)), n=96, side=32)
    write_json(run.file("recipe.json"), run.settings | {"data": "/photos/holidays_in_the_mountains-and-by-the-sea"})
    maps(run)
    report(run)
    visit = Visit(browser, run, wide=400)
    cut = "(e) => e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1"
    assert not visit.page.locator("#chips").evaluate(cut)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    words = visit.page.locator("h1").evaluate(WORDS)
    assert len(words) > 8 and all(lines == 1 for _, lines in words), words
    visit.page.close()


WORDS = r"""(h1) => { const found = []; const walk = document.createTreeWalker(h1, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[A-Za-z0-9]+/g)) {
  const range = document.createRange(); range.setStart(walk.currentNode, word.index);
  range.setEnd(walk.currentNode, word.index + word[0].length);
  found.push([word[0], new Set([...range.getClientRects()].map((r) => r.top)).size]); } return found; }"""


def test_the_curves_change_their_axis(visit: Visit):
    visit.page.locator("input[value=seconds]").check()
    label = "Bokeh.documents.map((d) => d.roots()[0]).filter((r) => r.name !== 'map').map((r) => r.below[0].axis_label)"
    assert set(visit.page.evaluate(label)) == {"seconds"}
    visit.page.locator("input[value=epochs]").check()
    assert set(visit.page.evaluate(label)) == {"epochs"}


def test_it_fits_a_phone_by_day_and_when_night_falls(browser: Any, run: Run):
    visit = Visit(browser, run, wide=390)
    ground = "getComputedStyle(document.body).backgroundColor.slice(4, -1).split(',').reduce((a, b) => a + +b, 0)"
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate(ground) > 600
    day = visit.column("fill")
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_timeout(100)
    assert visit.page.evaluate(ground) < 150
    assert set(visit.column("fill")).isdisjoint(day), "the points keep the colours of the day"
    assert visit.complaints == []
    visit.page.close()


def test_hostile_names_are_text(browser: Any, tmp_path: Path):
    run = fake_run(tmp_path, HOSTILE, n=30, side=32)
    write_json(run.file("test_ids.json"), [f"<img src=x onerror=alert({i})>.png" for i in range(30)])
    maps(run)
    report(run)
    visit = Visit(browser, run)
    visit.page.mouse.move(*visit.point(0))
    visit.page.wait_for_selector("#face dd.soft")
    assert visit.card()["image"] == f"<img src=x onerror=alert({sample(30)[0]})>.png"
    assert visit.complaints == [] and visit.page.locator("#face img").count() == 0
    visit.page.close()


def test_without_labels_there_are_clusters(browser: Any, tmp_path: Path):
    run = fake_run(tmp_path, n=40, side=32)
    for name in ("test_lbl.npy", "test_pred.npy", "test_prob.npy", "classes.json"):
        run.file(name).unlink()
    found = maps(run)
    report(run)
    visit = Visit(browser, run)
    assert visit.page.locator(".chip").count() == 1 + found["cluster"].max() == 4
    visit.page.locator(".chip").first.click()
    assert [alpha > 0.5 for alpha in visit.column("alpha")] == (found["cluster"] == 0).tolist()
    assert visit.page.locator("#clusters .strip").count() == 4
    assert "linear classifier" in visit.page.locator("#labels").inner_text()
    assert visit.complaints == []
    visit.page.close()


def test_the_check_sees_complaints_and_requests(browser: Any, run: Run, tmp_path: Path):
    """What would be wrong is noticed: an image from elsewhere, and a script that the policy does not know."""
    html = run.file(REPORT).read_text(encoding="utf-8")
    bad = Run(tmp_path)
    bad.file(REPORT).write_text(html.replace("<main>", "<main><img src='x.png'><script>document.title = 1</script>"))
    visit = Visit(browser, bad)
    assert sum("Content Security Policy" in text for text in visit.complaints) == 2
    assert visit.page.title() != "1"
    visit.page.close()
