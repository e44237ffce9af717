"""The table of planted errors fits the code: each still finds its text, leaves Python, and names tests that exist."""

from __future__ import annotations

import re
from collections import Counter

import planted
import pytest

TABLE = planted.read(planted.TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("error", TABLE, ids=lambda error: error.name)
def test_it_can_be_planted(error: planted.Planted):
    changed = error.plant((planted.ROOT / error.file).read_text(encoding="utf-8"))
    compile(changed, error.file, "exec")
    assert error.tests and error.old != error.new
    for test in error.tests:
        file, _, function = test.partition("::")
        text = (planted.ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, f"{error.name!r} names {test}, which is not there"


def test_each_has_a_name_of_its_own_and_every_room_has_some():
    assert max(Counter(error.name for error in TABLE).values()) == 1 and len(TABLE) >= 70
    rooms = {re.split(r"[/.]", error.file)[1] for error in TABLE}
    assert rooms == {
        path.stem for path in (planted.ROOT / "crlf").iterdir() if path.suffix != ".typed" and path.name[:2] != "__"
    }


@pytest.mark.parametrize("text, times", [("no such text", 0), ("e", 4)])
def test_a_text_that_is_not_there_once_is_told(text: str, times: int):
    error = planted.Planted("a name", "a/file.py", text, "", ())
    with pytest.raises(LookupError, match=f"'a name': its text is in a/file.py {times} times, not once"):
        error.plant("here we are")


def test_a_block_is_an_error():
    text = "# heading\none\na.py\n- x = 1\n-     y\n+ x = 2\ntest_a.py::f\n\ntwo\nb.py\n- z\ntest_b.py\n"
    one, two = planted.read(text)
    assert (one.old, one.new, one.tests) == ("x = 1\n    y", "x = 2", ("test_a.py::f",))
    assert (two.name, two.file, two.old, two.new) == ("two", "b.py", "z", "")


def test_what_a_run_of_the_tests_means(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """And the file is as it was, whatever came of it."""
    (tmp_path / "a.py").write_text("good")
    seen = []
    for code, word in ((0, "SURVIVED"), (1, "caught"), (2, "NOT TRIED"), (5, "NOT TRIED"), (None, "HANGS")):
        monkeypatch.setattr(planted, "run", lambda at, tests, code=code: seen.append((at / "a.py").read_text()) or code)
        assert planted.verdict(planted.Planted("a", "a.py", "good", "bad", ("t.py",)), tmp_path).startswith(word)
        assert (tmp_path / "a.py").read_text() == "good"
    assert seen == ["bad"] * 5
