"""What the system tests share: their last results, which are kept beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import machine

COMMAND = "python -m pytest -m system"


@pytest.fixture
def keep() -> Callable[[str, list[dict[str, Any]]], None]:
    """`keep(name, rows)` writes NAME.json here, in the form of a line of bench/records.jsonl."""

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        record = {"bench": f"system: {name}", "command": COMMAND, **machine(), "rows": rows}
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    return write


@pytest.fixture
def kept() -> Callable[[str], list[dict[str, Any]]]:
    """`kept(name)` gives the rows of NAME.json, for a test that goes on where an earlier one ended."""

    def rows(name: str) -> list[dict[str, Any]]:
        path = Path(__file__).with_name(f"{name}.json")
        return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []

    return rows
