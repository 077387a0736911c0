"""The package page: README.md, whose links lead from the page of a package index to the repository.

Everything else of the package stands in pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?:|#|mailto:)([^)\s]+)")


def package_page(text: str, repository: str) -> str:
    """Markdown with every relative link and picture made absolute."""

    def absolute(link: re.Match[str]) -> str:
        form = "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}{repository}/{form}/main/{link[2]}"

    return _LINK.sub(absolute, text)


if __name__ == "__main__":
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    page = package_page((ROOT / "README.md").read_text("utf-8"), urls["Repository"])
    setup(long_description=page, long_description_content_type="text/markdown")
