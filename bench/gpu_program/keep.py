"""What a GPU program brought back becomes records, tables and figures: `python -m bench record FOLDER`."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from bench import readme
from bench.gpu_program import figures
from bench.gpu_program.main import source
from crlf.errors import InputError

RECORDS = Path(__file__).parent.parent / "records.jsonl"
FIGURES = Path(__file__).parent.parent.parent / "docs"
NAMED = "gpu-program"  # of the records, and a word for the part


def main(argv: list[str]) -> int:
    """Append a record for each part that found something, write the pages, draw the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench record", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `python -m bench gpu-program --out FOLDER` wrote")
    asked = parser.parse_args(argv)
    found = read(asked.folder)
    records = list(of_parts(found))
    known = {line for line in RECORDS.read_text(encoding="utf-8").splitlines()} if RECORDS.exists() else set()
    lines = [line for record in records if (line := json.dumps(record)) not in known]
    with RECORDS.open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    readme.write(RECORDS)
    drawn = figures.draw(RECORDS, FIGURES)
    print(f"{len(lines)} new records in {RECORDS.name}; figures: {', '.join(path.name for path in drawn) or 'none'}")
    return 0


def read(folder: Path) -> dict[str, Any]:
    """results.json of a folder.

    Raises:
        InputError: it is missing or damaged, or holds no result.
    """
    path = folder / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, parts = found["rows"], found["parts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a GPU program's results: {error}") from error
    if not rows or not isinstance(parts, dict):
        raise InputError(f"{str(path)!r} holds no results")
    return found


def of_parts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A record for each part that has rows, in their order."""
    looked = [row for row in found["rows"] if row["part"] == "look" and "device" in row]
    about: dict[str, Any] = looked[0] if looked else found.get("machine", {})
    parts = dict.fromkeys(row["part"] for row in found["rows"])
    return [
        {
            "bench": f"{NAMED} {part}",
            "command": f"python -m bench {NAMED} {found.get('asked', '')}".strip(),
            "date": found.get("date", ""),
            "commit": commit(found.get("source", "")),
            "torch": about.get("torch", ""),
            "python": about.get("python", ""),
            "device": about.get("device", "not known"),
            "ended": found["parts"].get(part, {}),
            "rows": [bare(row) for row in found["rows"] if row["part"] == part and "text" not in row],
        }
        for part in parts
    ]


def bare(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("part", "at")}


def commit(checksum: str) -> str:
    """The commit that was measured, if that is the one here; else the checksum of its source."""
    here = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "crlf", "bench/*.py"], check=False).returncode
    if checksum == source() and here.returncode == 0 and not changed:
        return here.stdout.strip()
    return f"source {checksum[:12]}"
