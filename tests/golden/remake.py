"""Write the golden curve anew: `python tests/golden/remake.py`, after a change that is meant to change it."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

import test_learning

with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
    losses = test_learning.curve(Path(folder), patch)
test_learning.GOLDEN.write_text(json.dumps([round(loss, 6) for loss in losses], indent=1) + "\n", encoding="utf-8")
