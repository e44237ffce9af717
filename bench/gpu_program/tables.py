"""What the program found, as text."""

from __future__ import annotations

from typing import Any

from bench.tables import columns

HIDDEN = ("part", "at", "table", "text")


def text(found: dict[str, Any]) -> str:
    """A table for each part and kind of row, how the parts ended, and what surprises."""
    rows = found["rows"]
    lines = [f"{found.get('device', 'device not known')}, torch {found.get('torch', '')}, {found['seconds']} s"]
    for part, ended in found["parts"].items():
        error = f": {ended['error']}" if "error" in ended else ""
        lines.append(f"{part:<8} {ended['state']:<8} {ended['seconds']:>6} s{error}")
    kinds = dict.fromkeys((row["part"], row.get("table", "")) for row in rows)
    for part, kind in kinds:
        some = [row for row in rows if (row["part"], row.get("table", "")) == (part, kind)]
        lines += ["", f"{part}: {kind}" if kind else part, columns(some, HIDDEN)]
    surprises = [row["surprise"] for row in rows if "surprise" in row]
    texts = [row["text"] for row in rows if "text" in row]
    return "\n".join([*lines, *(["", "Surprises", *surprises] if surprises else []), *texts])
