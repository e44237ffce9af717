"""Hold what CRLF needs, and what that needs, against the known vulnerabilities (pip-audit, of PyPI's advisories).

    pip install -e '.[audit]' && python tests/audit.py

Ends with 1 when one is known and a release without it is there. Where the advisories cannot be reached it says so.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement


def needed(name: str = "crlf") -> dict[str, str]:
    """What is installed of all that a package needs, without its extras: {name: version}."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        package = waiting.pop()
        for line in importlib.metadata.requires(package) or []:
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({**default_environment(), "extra": ""}):
                continue
            if need.name not in found:
                found[need.name] = importlib.metadata.version(need.name)
                waiting.append(need.name)
    return found


def audited(packages: dict[str, str]) -> list[dict[str, Any]]:
    """What pip-audit says of each; none where it cannot reach the advisories."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("".join(f"{name}=={version.split('+')[0]}\n" for name, version in sorted(packages.items())))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "-r", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return []
    return [row for row in told if "skip_reason" not in row]


def main() -> int:
    packages = needed()
    told = audited(packages)
    if not told:
        print(f"audit: the advisories cannot be reached; {len(packages)} packages were not audited")
        return 0
    mended = 0
    for row in told:
        for known in row["vulns"]:
            releases = ", ".join(known["fix_versions"])
            mended += bool(releases)
            print(f"audit: {row['name']} {row['version']}: {known['id']}, mended in {releases or 'no release yet'}")
    print(f"audit: {len(told)} of {len(packages)} packages were audited")
    return 1 if mended else 0


if __name__ == "__main__":
    sys.exit(main())
