"""The pictures of the README, from a run: `python -m bench pictures RUN`.

The top of its report by day and by night, as a browser shows it, and its figures, each small enough for a page. They go
to docs/pictures/. The browser is Playwright's Chromium, or the one that the machine has.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import crlf
from bench.cifar10 import kept
from crlf.data import load
from crlf.errors import InputError
from crlf.runs.run import REPORT, Run

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
FIGURES = ("loss_curve", "views", "tsne_embedding", "confusion_matrix")
WIDE, HIGH = 1400, 1560  # pixels of the window
LEFT_OUT = "nav, p:has(> code)"  # the contents, and the folder's path
MOST = 300_000  # bytes of a picture
NARROWEST = 500
SEARCHED = (0, 4, 7, 8)  # classes whose first test image is searched for
NEAREST = 8


def small(picture: Image.Image) -> bytes:
    """A PNG of at most `MOST` bytes: of fewer colours, and if need be of fewer pixels."""
    picture = picture.convert("RGB")
    while True:
        buffer = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        if buffer.tell() <= MOST or picture.width <= NARROWEST:
            return buffer.getvalue()
        picture = picture.resize((round(0.85 * picture.width), round(0.85 * picture.height)), Image.Resampling.LANCZOS)


def screenshots(report: Path) -> dict[str, Image.Image]:
    """The verdict and the map of a report, by day and by night."""
    from playwright.sync_api import sync_playwright

    found: dict[str, Image.Image] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDE, "height": HIGH}, color_scheme=scheme)
            page.goto(report.resolve().as_uri())
            page.add_style_tag(content=f"{LEFT_OUT} {{ display: none }}")
            page.wait_for_timeout(1500)  # until the plots are drawn
            found[f"report-{scheme}"] = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    return found


def neighbours(run: Run) -> Image.Image:
    """The nearest training images of the first test image of some classes."""
    test = load(run.recipe.data)[1]
    assert test.labels is not None
    labels = test.labels.tolist()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for label in SEARCHED:
            pixels = test.images[labels.index(label)].permute(1, 2, 0).numpy()
            files.append(Path(folder) / f"{test.classes[label]}.png")
            Image.fromarray(pixels).save(files[-1])
        figure = Path(folder) / "neighbours.png"
        crlf.search(run, tuple(files), k=NEAREST, distinct=True, figure=figure)
        with Image.open(figure) as drawn:
            return drawn.copy()


def main(argv: Sequence[str]) -> int:
    """Write the pictures, and say where."""
    parser = argparse.ArgumentParser(prog="python -m bench pictures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "run", type=Path, nargs="?", default=kept(), help="that of `python -m bench cifar10` if not given"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args(argv)
    run = Run.open(asked.run)
    if not run.file(REPORT).is_file():
        raise InputError(f"run {str(asked.run)!r} has no report: `crlf report {asked.run}` writes it")
    pictures = screenshots(run.file(REPORT))
    for name in FIGURES:
        with Image.open(run.file(f"{name}.png")) as drawn:
            pictures[name.replace("_", "-")] = drawn.copy()
    pictures["neighbours"] = neighbours(run)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = asked.out / f"{name}.png"
        path.write_bytes(small(picture))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0
