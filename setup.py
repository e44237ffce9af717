"""The description of the package is the README. Its links and pictures stand on the repository's address.

All else is in pyproject.toml. There `[project.urls] Repository` is the one place of the address.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def absolute(text: str, repository: str) -> str:
    """A README whose relative links and pictures are found from the index too; as it is where no address is known."""
    if not repository:
        return text
    text = re.sub(r'(!\[[^]]*\]\(|(?:src|srcset)=")(?![a-z]+:|#)', rf"\1{repository}/raw/main/", text)
    return re.sub(r"(\]\()(?![a-z]+:|#)", rf"\1{repository}/blob/main/", text)


def repository() -> str:
    """The address, without a slash at its end; empty where pyproject.toml has none."""
    found = re.search(r'^Repository = "(.*?)/?"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(long_description=absolute(readme, repository()), long_description_content_type="text/markdown")
