"""For mkdocs: links that lead out of docs/ go to the repository, and a comment lists options.

In the repository every link is relative, so that it works in a checkout and on its host.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunescope import api

_OPTIONS = re.compile(r"<!-- options of ([\w, ]+) -->")
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

    markdown = _OPTIONS.sub(lambda names: "\n".join(_tables(names[1].split(", "))), markdown)
    return _LINK.sub(absolute, markdown)


def _tables(functions: list[str]) -> Iterator[str]:
    """A table of the options of each function."""
    for name in functions:
        function = getattr(api, name)
        described = dict(re.findall(r"^    (\w+): (.*)$", function.__doc__, flags=re.MULTILINE))
        yield f"### {name}\n\n| option | type | default | |\n|---|---|---|---|"
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in described:
                continue
            kind, _, default = str(parameter).partition(": ")[2].partition(" = ")
            cells = (parameter.name, kind, default, described[parameter.name])
            shown = [cell.replace("|", "\\|") for cell in cells]
            yield f"| `{shown[0]}` | {shown[1]} | {shown[2]} | {shown[3]} |"
        yield ""
