"""For mkdocs: links that lead out of docs/ go to the repository, and pages of others join the menu.

In the repository every link is relative, so that it works in a checkout and on its host.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s]+)(\))")
_ROOMS = "<!-- the table of rooms -->"
_LATER = {"serving.md": "Guides", "extending.md": "Inside", "ledger.md": "Inside"}


def on_config(config: Any) -> Any:
    """Pages that are there and not in the menu get their place in it."""
    listed = str(config["nav"])
    for name, section in _LATER.items():
        if (Path(config["docs_dir"]) / name).is_file() and name not in listed:
            next(group[section] for group in config["nav"] if section in group).append(name)
    return config


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

    for name in (n for n in _LATER if not (root / "docs" / n).is_file()):
        markdown = re.sub(rf"\[([^\]]+)\]\({re.escape(name)}[^)]*\)", r"\1", markdown)
    return _LINK.sub(absolute, markdown.replace(_ROOMS, rooms(root)))


def rooms(root: Path) -> str:
    """The table of who may import whom, read off the test that holds it."""
    tree = ast.parse((root / "tests" / "arch" / "test_imports.py").read_text(encoding="utf-8"))
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ALLOWED" and node.value
    )
    lines = ["| room | may import |", "|---|---|"]
    for room, words in ast.literal_eval(table).items():
        lines.append(f"| {room} | {', '.join(words.split()) or 'none of ours'} |")
    return "\n".join(lines)
