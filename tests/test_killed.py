"""A training that is killed anywhere ends as one that was left alone, bit for bit: see tests/killed.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_killed_anywhere_it_ends_the_same(tmp_path: Path):
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), str(tmp_path), "50", "5", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in tmp_path.glob("*.said"))[-3000:]
    found = json.loads(done.stdout)
    assert found["different"] == {}
    assert found["kills"]["write"] >= 20 and found["kills"]["random"] == 50
