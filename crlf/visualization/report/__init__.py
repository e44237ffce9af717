"""The report of a run: one HTML file that opens offline, on a phone or a desk, by day or by night.

It loads nothing: pictures, plots and Bokeh itself are inlined, and its Content-Security-Policy forbids every request.
Whatever comes from a file is escaped.
"""

from __future__ import annotations

from pathlib import Path

from crlf.runs.files import write_bytes
from crlf.runs.run import REPORT, Run


def report(run: Run | str | Path) -> Path:
    """Write report.html: how good, against what, in how long; curves, maps, mistakes, views, settings and files.

    Stages that were not run yet are named with the command that runs them.

    Returns:
        The file that was written.
    """
    from crlf.visualization.report.page import page  # here, so that `import crlf` does not wait for Bokeh

    run = Run.open(run)
    path = run.file(REPORT)
    write_bytes(path, page(run).encode("utf-8", "xmlcharrefreplace"))
    return path
