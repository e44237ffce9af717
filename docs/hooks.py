"""What mkdocs fills in when it builds the site: the help of every command, as the code has it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from crlf.cli import COMMANDS

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of all commands where the mark is."""
    return markdown.replace(MARK, "\n\n".join(map(section, COMMANDS))) if MARK in markdown else markdown


def section(name: str) -> str:
    program = "import sys; from crlf.cli import main; sys.exit(main())"
    environment = os.environ | {"COLUMNS": "100"}
    command = [sys.executable, "-c", program, name, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return f"## crlf {name}\n\n{COMMANDS[name][1].capitalize()}.\n\n```text\n{text.rstrip()}\n```"
