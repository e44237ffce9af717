"""Commands on a pseudo-terminal, in this process or in their own, and what is then to be seen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from crlf import cli

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-c", "import sys; from crlf.cli import main; sys.exit(main())"]  # as pip installs `crlf`
COLOURS = {"colours": {"TERM": "xterm-256color"}, "no colours": {"TERM": "xterm-256color", "NO_COLOR": "1"}}
KINDS = {**COLOURS, "dumb": {"TERM": "dumb"}}
CHANGES = ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR")  # what programs go by


class Terminal(NamedTuple):
    """Which terminal; None columns: pipes."""

    columns: int | None
    kind: str = "dumb"

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in CHANGES} | KINDS[self.kind]


PIPES = Terminal(None)
EVERY = [PIPES, *(Terminal(columns, kind) for columns in (60, 80, 120) for kind in KINDS)]
FEW = [PIPES, Terminal(60, "colours"), Terminal(80, "no colours"), Terminal(120, "dumb")]  # where a command takes long


class Said(NamedTuple):
    code: int
    text: str  # of stdout and stderr, as they came


def ends(terminal: Terminal) -> tuple[int, int]:
    """What reads, and what a command writes on."""
    if terminal.columns is None:
        return os.pipe()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, terminal.columns, 0, 0))
    return ours, theirs


def heard(end: int, into: list[bytes]) -> None:
    """Read until nobody writes any more; Linux then calls it an error."""
    with contextlib.suppress(OSError), open(end, "rb", buffering=0) as file:
        while block := file.read(1 << 16):
            into.append(block)


@contextlib.contextmanager
def listening(terminal: Terminal) -> Iterator[tuple[int, list[bytes]]]:
    """What a command may write on, and what it has written when this is over."""
    ours, theirs = ends(terminal)
    into: list[bytes] = []
    reader = threading.Thread(target=heard, args=(ours, into))
    reader.start()
    try:
        yield theirs, into
    finally:
        os.close(theirs)
        reader.join()


def text(blocks: list[bytes]) -> str:
    return b"".join(blocks).decode("utf-8").replace("\r\n", "\n")


def here(terminal: Terminal, *arguments: str) -> Said:
    """`crlf` in this process: as fast as a call, and its streams are a terminal."""
    with listening(terminal) as (end, into), pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.delenv(name, raising=False)
        for name, value in KINDS[terminal.kind].items():
            patch.setenv(name, value)
        whole = 1 if terminal.columns else -1  # on a terminal Python writes each line at once
        with open(os.dup(end), "w", whole, encoding="utf-8") as out, open(os.dup(end), "w", 1, encoding="utf-8") as err:
            for names, stream in ((("stdout", "__stdout__"), out), (("stderr", "__stderr__"), err)):
                for name in names:
                    patch.setattr(sys, name, stream)
            code = cli.main(list(arguments))
    return Said(code, text(into))


def there(terminal: Terminal, command: list[str], cwd: Path = ROOT, **environment: str) -> Said:
    """A program of its own, whose stdin, stdout and stderr are the terminal."""
    env = {**terminal.environment, "PYTHONPATH": str(ROOT), **environment}
    with listening(terminal) as (end, into):
        stdin = end if terminal.columns else subprocess.DEVNULL
        done = subprocess.run(command, stdin=stdin, stdout=end, stderr=end, cwd=cwd, env=env, timeout=120, check=False)
    return Said(done.returncode, text(into))


def refused(*arguments: str, terminals: list[Terminal] = FEW, alone: bool = True) -> str:
    """The line in which a wrong command ends. It is the same wherever it is read; alone: and there is no other."""
    lines = {}
    for terminal in terminals:
        code, said = here(terminal, *arguments)
        *before, line, last = seen(said)
        assert code == 2 and last == "" and not (alone and before), (terminal, code, said)
        assert line.startswith("crlf") and ": error: " in line, said
        assert not any(strange in said for strange in ("\x1b", "│", "Traceback")), said
        lines[line] = terminal
    assert len(lines) == 1, lines
    return line


def seen(written: str) -> list[str]:
    """The lines that stand on a wide enough terminal at the end: `\\r` goes back to the start of a line."""
    rows = []
    for line in written.split("\n"):
        row = ""
        for part in line.split("\r"):
            row = part + row[len(part) :]
        rows.append(row.rstrip())
    return rows
