"""What mkdocs adds when it builds the site: commands, settings and public names from the code, and two root pages."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the site is of this checkout, whatever is installed

import crlf  # noqa: E402
from crlf.cli import COMMANDS, command, flags  # noqa: E402
from crlf.methods import METHODS  # noqa: E402
from crlf.recipe import RECIPES  # noqa: E402

FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
DEFAULT = RECIPES["default"]


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages that lie outside docs/. Their links are from the root of the checkout."""
    from mkdocs.structure.files import File

    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the marks of the reference pages."""
    for mark, filled in (("<!-- commands -->", commands), ("<!-- settings -->", settings)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n\n".join(filled()))
    return re.sub(r"^::: crlf\.(\w+)$", public_name, markdown, flags=re.MULTILINE)


def public_name(match: re.Match[str]) -> str:
    """A name of `crlf` is described where it is defined, and called as it is imported."""
    name = match[1]
    home = getattr(crlf, name).__module__
    return f"::: {home}.{name}\n    options: {{ heading: crlf.{name}, toc_label: {name} }}"


def commands() -> Iterator[str]:
    """One section for each command. Those that take a recipe leave its settings to the page of the settings."""
    for name, (_, text) in COMMANDS.items():
        function = command(name)
        recipe = DEFAULT if flags.RECIPE in inspect.signature(function).parameters else None
        parser = flags.parser_of(flags.flags_of(function, recipe), f"crlf {name}", flags.words_of(function))
        yield f"## crlf {name}\n\n{text[0].upper() + text[1:]}."
        yield f"```text\n{flags.usage(function, f'crlf {name}')}\n```"
        yield plain(flags.paragraph(function))
        groups = [group for group in parser._action_groups if group.title in ("arguments", flags.FIRST, "options")]
        for group in groups:
            yield from options(str(group.title), group._group_actions)
        if recipe is not None:
            yield "More options: [every setting](settings.md)."


def options(title: str, actions: list[argparse.Action]) -> Iterator[str]:
    """The options of one group, as a list of definitions."""
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    if shown:
        yield f"**{title.capitalize()}**"
    for action in shown:
        names = ", ".join(action.option_strings)
        value = str(action.metavar) if action.nargs != 0 else ""
        yield f"`{' '.join(filter(None, (names, value)))}`\n:   {plain((action.help or '').replace('%%', '%'))}"


def settings() -> Iterator[str]:
    """One section for each part of a recipe, then one for the own settings of each method."""
    sections: dict[str, list[flags.Flag]] = {}
    for flag in flags.settings_of(DEFAULT, flags.RECIPE):
        sections.setdefault(flag.place.rpartition(".")[0], []).append(flag)
    sections.pop(f"{flags.RECIPE}.head", None)
    for place, found in sections.items():
        yield from section(place, found)
    yield "## Settings of a method"
    yield f"In Python and in `recipe.json` they are `{flags.RECIPE}.head`."
    for name in sorted(METHODS):
        if found := list(flags.settings_of(METHODS[name].Settings(), f"{flags.RECIPE}.head")):
            yield from section(f"--method {name}", found, level=3)


def section(title: str, found: list[flags.Flag], level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {title}"
    yield plain(found[0].about)
    parser = flags.parser_of(found, "crlf")
    actions = [action for group in parser._action_groups for action in group._group_actions if action.dest != "help"]
    for place in dict.fromkeys(action.dest for action in actions):
        [shown] = [action for action in actions if action.dest == place and action.help != argparse.SUPPRESS]
        value = f" {shown.metavar}" if shown.nargs != 0 else ""
        text = plain((shown.help or "").replace("%%", "%"))
        yield f"`{place.rpartition('.')[2]}`, `{shown.option_strings[-1]}{value}`\n:   {text}"


def plain(text: str) -> str:
    """A text of the code as Markdown: only its code in backticks has a meaning."""
    return re.sub(r"(?<!`)([*<])(?![^`]*`[^`]*$)", r"\\\1", text) or " "
