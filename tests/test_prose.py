"""The pages and the help texts are free of phrases that we do not want again; tests/prose.py finds them."""

from __future__ import annotations

import prose
import pytest


@pytest.mark.parametrize("name, text", prose.pages().items())
def test_no_page_has_a_phrase_that_we_do_not_want(name: str, text: str):
    assert not list(prose.phrases(text))


def test_no_help_text_has_one():
    found = prose.helps()
    assert len(found) > 15 and "train" in found["crlf pretrain --help"]
    assert not {name: list(prose.phrases(text)) for name, text in found.items() if list(prose.phrases(text))}


@pytest.mark.parametrize(
    "bad",
    [
        "None was tried, for want of the machines.",
        "It skips what is no image.",
        "A folder of one's own.",
        "Only these tell anything.",
        "It serves for new images, of any number.",
        "What should help, and\nwhat speaks for it.",
        "Two views an image, 30 images a second.",
        "More files that are no images.",
    ],
)
def test_each_is_found(bad: str):
    assert list(prose.phrases(prose.prose(f"# A page\n\n{bad}\n")))


def test_code_and_generated_tables_are_left_out():
    bad = "for want of it"
    page = f"# A\n\nText.\n\n    {bad}\n\n```\n{bad}\n```\n\n<!-- t -->\n{bad}\n<!-- end -->\n\nIn `{bad}`. {bad}\n"
    [(line, _)] = prose.phrases(prose.prose(page))
    assert page.split("\n")[line - 1].startswith("In `")
