"""For mkdocs: links that lead out of docs/ go to the repository.

In the repository every link is relative, so that it works in a checkout and on its host.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s]+)(\))")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """A relative link that leaves docs/ becomes one into the repository; raises where there is no
    such file."""
    root = Path(config["docs_dir"]).parent
    here = posixpath.join("docs", posixpath.dirname(page.file.src_path))

    def absolute(link: re.Match[str]) -> str:
        path, _, anchor = link[2].partition("#")
        target = posixpath.normpath(posixpath.join(here, path))
        if target.startswith("docs/"):
            return link[0]
        if not (root / target).exists():
            raise ValueError(f"{page.file.src_path} links to {target}, which is not there")
        tail = f"#{anchor}" if anchor else ""
        return f"{link[1]}{config['repo_url']}/blob/main/{target}{tail}{link[3]}"

    return _LINK.sub(absolute, markdown)
