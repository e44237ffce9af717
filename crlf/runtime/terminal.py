"""stdout and stderr, which may be closed, full, or unable to encode a character."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

BROKEN_PIPE = 128 + 13  # the exit code of a program that SIGPIPE ends


class Unwritable(BaseException):
    """stdout or stderr cannot be written.

    Like KeyboardInterrupt it is not an Exception, so that no `except OSError` takes it for an error of the run folder
    or of an image.
    """

    def __init__(self, name: str, error: OSError):
        super().__init__(name)
        self.name, self.error = name, error

    def exit_code(self, prog: str) -> int:
        """Print the reason if possible, and return the exit code. A closed pipe, as of `head`, is not an error."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.let_go()
        if self.error.errno == errno.EPIPE:
            return BROKEN_PIPE
        with contextlib.suppress(Exception):
            print(f"{prog}: error: {self.name} cannot be written: {self.error.strerror}", file=sys.stderr, flush=True)
        return 2

    def let_go(self) -> None:
        """Redirect the stream to the null device: Python flushes it at exit, and would print another error."""
        with contextlib.suppress(Exception), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), getattr(sys, self.name).fileno())


class Outlet:
    """A stream whose errors are `Unwritable`."""

    def __init__(self, name: str, stream: IO[str]):
        self.name, self.stream = name, stream

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            raise Unwritable(self.name, error) from error

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            raise Unwritable(self.name, error) from error


@contextlib.contextmanager
def outlets() -> Iterator[None]:
    """Replace stdout and stderr by `Outlet`s, which escape characters that they cannot encode.

    Raises:
        Unwritable: one of them cannot be written.
    """
    out, err = opened("stdout"), opened("stderr")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
        out.flush()
        err.flush()


def opened(name: str) -> Outlet:
    stream = getattr(sys, name) or io.StringIO()  # None if it was closed
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Outlet(name, stream)


def columns(otherwise: int = 80) -> int:
    """The width of the terminal. With `| less` stdout is no terminal, but stderr or stdin is."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"]) or otherwise
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        with contextlib.suppress(Exception):
            return os.get_terminal_size(stream.fileno()).columns or otherwise  # type: ignore[union-attr]
    return otherwise


def say(line: str) -> None:
    """Print a last line on stderr; under torchrun, only from the first process."""
    sys.stdout.flush()  # in a file of both streams it comes last as well
    if os.environ.get("RANK", "0") == "0":  # the rank, without torch
        print(one_line(line), file=sys.stderr)


def one_line(text: str) -> str:
    r"""The text with control characters escaped, such as \n and \x1b: file names may contain any."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)
