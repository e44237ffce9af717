"""The doctor: looks for causes of a low score in a run's records. Each finding has evidence and a flag to try."""

from __future__ import annotations

import textwrap
from pathlib import Path

from crlf.errors import InputError
from crlf.evaluation.doctor.case import Case, Finding
from crlf.evaluation.doctor.checks import CHECKS
from crlf.runs.run import Run
from crlf.runtime.terminal import columns


def doctor(run: Run | str | Path, *, data_dir: str | Path | None = None) -> list[Finding]:
    """Look for causes of a low score in a run. Print the findings, and which checks were skipped and why.

    Args:
        run: the run folder.
        data_dir: the folder of the named data sets, for checks that need the images.

    Returns:
        The findings; an empty list if there are none.

    Raises:
        InputError: the folder holds no run.
    """
    case = Case(Run.open(run), data_dir)
    found: list[Finding] = []
    unseen: dict[str, list[str]] = {}  # the skipped checks, by reason
    for name, check in CHECKS.items():
        try:
            finding = check(case)
        except InputError as reason:
            unseen.setdefault(str(reason), []).append(name)
            continue
        if finding:
            found.append(finding)
    print(text(found, looked_at=len(CHECKS) - sum(map(len, unseen.values())), unseen=unseen))
    return found


def text(found: list[Finding], looked_at: int, unseen: dict[str, list[str]]) -> str:
    """The text that the command prints."""
    checks = f"{looked_at} check{'s' * (looked_at != 1)}"
    head = f"{len(found)} finding{'s' * (len(found) != 1)} in {checks}" if found else f"nothing found in {checks}"
    parts = [head]
    for number, finding in enumerate(found, start=1):
        parts.append(
            "\n".join([f"{number}. {finding.what}", *lines(finding.evidence), *lines(f"try: {finding.advice}")])
        )
    if unseen:
        reasons = (line for reason, names in unseen.items() for line in lines(f"{', '.join(names)}: {reason}"))
        parts.append("\n".join(["skipped:", *reasons]))
    return "\n\n".join(parts)


def lines(sentence: str) -> list[str]:
    """Indented lines as wide as the terminal, at most 110 columns."""
    width = min(110, columns(otherwise=110))
    return textwrap.wrap(sentence, width, initial_indent="   ", subsequent_indent="   ", break_long_words=False)
