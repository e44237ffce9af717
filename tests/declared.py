"""What pyproject.toml declares: the packages, and the lowest version of each.

    python tests/declared.py > lowest.txt && pip install -e '.[onnx]' -c lowest.txt

prints one line `name==version` for each: a constraints file, of versions alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parent.parent
TOOLS = ("audit", "bench", "docs", "lint")  # extras that no test needs


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared(*extras: str) -> list[Requirement]:
    """What an installation with these extras needs directly."""
    told = project()
    lines = [*told["dependencies"], *(line for extra in extras for line in told["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def lowest() -> dict[str, str]:
    """The lowest version that is declared of each package, the tools' aside: {name: version}."""
    extras = [name for name in project()["optional-dependencies"] if name not in TOOLS]
    found: dict[str, str] = {}
    for need in declared(*extras):
        [version] = [part.version for part in need.specifier if part.operator in (">=", "==")]
        if found.setdefault(need.name, version) != version:
            raise ValueError(f"{need.name} is declared with two lowest versions, {found[need.name]} and {version}")
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest().items())))
