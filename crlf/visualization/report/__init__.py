"""The report of a run: one HTML file that opens offline, on a phone or a desk, by day or by night.

It loads nothing: pictures, plots and Bokeh itself are inlined, and its Content-Security-Policy forbids every request.
Whatever comes from a file is escaped.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crlf.runs.files import write_bytes
from crlf.runs.run import REPORT, Run
from crlf.text import say, size


def report(run: Run | str | Path) -> Path:
    """Write report.html: how good, against what, in how long; curves, maps, mistakes, views, settings and files.

    Stages that were not run yet are named with the command that runs them.

    Returns:
        The file that was written.
    """
    with some_home():
        from crlf.visualization.report.page import page  # here, so that `import crlf` does not wait for Bokeh

    run = Run.open(run)
    path = run.file(REPORT)
    html = page(run).encode("utf-8", "xmlcharrefreplace")
    write_bytes(path, html)
    say(f"report of {size(len(html))}, one file for any browser: {str(path)!r}")
    return path


@contextlib.contextmanager
def some_home() -> Iterator[None]:
    """Let HOME name a folder: Bokeh looks for its settings there when it is imported, and fails where there is none."""
    if os.path.expanduser("~") != "~":
        yield
        return
    with tempfile.TemporaryDirectory() as os.environ["HOME"]:
        try:
            yield
        finally:
            del os.environ["HOME"]
