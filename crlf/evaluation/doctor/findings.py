"""What the doctor finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that may be wrong with a run."""

    name: str  # the check's, in `crlf.evaluation.doctor.checks.CHECKS`
    what: str  # in a line
    evidence: str  # numbers from the run
    advice: str  # what to try, with its flag
