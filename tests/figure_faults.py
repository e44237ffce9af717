"""What is wrong with the layout of a figure: texts that are cut off or overlap."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from crlf.visualization.figures import style


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a figure really draws; a tick outside the axes has a label that is not drawn."""
    seen: list[Text] = []
    original = Text.draw

    def noting(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        original(self, renderer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, style.styled():
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
