"""What tests/audit.py makes of the advisories."""

from __future__ import annotations

import audit
import pytest


def test_all_that_is_needed_is_found():
    found = audit.needed()
    assert {"torch", "numpy", "pillow", "tqdm"} <= set(map(str.lower, found)) and "pytest" not in found
    assert len(found) > 30  # and what these need


@pytest.mark.parametrize("releases, code", [(["2.0"], 1), ([], 0)])
def test_a_vulnerability_fails_where_a_release_mends_it(monkeypatch, capsys, releases: list[str], code: int):
    known = [{"id": "PYSEC-1", "fix_versions": releases}]
    told = [{"name": "pillow", "version": "1.0", "vulns": known}, {"name": "torch", "version": "1", "vulns": []}]
    monkeypatch.setattr(audit, "audited", lambda packages: told)
    assert audit.main() == code
    assert "audit: pillow 1.0: PYSEC-1, mended in " in capsys.readouterr().out


def test_without_advisories_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(audit, "audited", lambda packages: [])
    assert audit.main() == 0 and "cannot be reached" in capsys.readouterr().out
