"""Pages of the documentation as code: their fenced blocks, run in order. No test in it.

`sh` blocks are commands of prunescope, run in this process; `python` blocks are executed in one
namespace a page; a block with a title is a file. A block after `<!-- not run: why -->` is skipped.
"""

from __future__ import annotations

import re
import runpy
import shlex
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prunescope

_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n)?```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_TEXT = ("", "text", "json", "console")  # what a reader looks at; transcripts.py runs consoles


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file that it is, if any."""

    kind: str
    code: str
    title: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are run."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["kind"], m["code"], m["title"]) for m in found if not m["skip"]]


def run(page: Path, *, folder: Path) -> int:
    """Run a page in `folder`, which must be the current one; returns how many blocks ran."""
    names: dict[str, Any] = {"__name__": "__page__"}
    ran = 0
    for block in blocks(page):
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.kind == "sh":
            for words in commands(block.code):
                _command(words, page)
        elif block.kind == "python":
            exec(compile(block.code, page.name, "exec"), names)  # noqa: S102 - our own pages
        else:
            assert block.kind in _TEXT, f"{page.name}: a block of {block.kind} is not run"
            continue
        ran += 1
    return ran


def commands(code: str) -> list[list[str]]:
    """The commands of a block as words; comments are left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _command(words: list[str], page: Path) -> None:
    name, *rest = words
    if name == "python":
        runpy.run_path(rest[0], run_name="__main__")
        return
    assert name == "prunescope", f"{page.name}: {name} is not run"
    arrow, target = rest[-2:] if len(rest) > 1 else ("", "")
    with ExitStack() as stack:
        if arrow == ">":
            file = stack.enter_context(Path(target).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(file))
            rest = rest[:-2]
        code = prunescope.main(rest)
    assert code == 0, f"{page.name}: {shlex.join(words)} ended with {code}"
