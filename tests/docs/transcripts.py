"""Console blocks of the documentation: commands after `$ `, and what they print. No test in it.

    $ prunescope analyze traces/first
    1.89× realised [1.87×, 1.92×] of 2.00× promised,
    …
    4 of 8 layers removed: 0, 1, 2, 5.

A line `…` stands for any lines; between two of them the words are those printed, in their order,
wherever lines break. A comment behind the command, `# exit code 3`, gives its exit code.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import prunescope

GAP = "…"
_EXIT = re.compile(r"#\s*exit code (\d+)\s*$")


@dataclass(frozen=True)
class Command:
    """A command, the exit code that it ends with, and the pieces of its output that are shown."""

    words: list[str]
    exit_code: int
    pieces: list[list[str]]

    def run(self) -> str:
        """What it prints. Raises AssertionError for another exit code."""
        name, *rest = self.words
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if name == "python":
                runpy.run_path(rest[0], run_name="__main__")
                code = 0
            else:
                assert name == "prunescope", f"{name} is not run"
                code = prunescope.main(rest)
        assert code == self.exit_code, f"{shlex.join(self.words)}: {code}, {printed.getvalue()}"
        return printed.getvalue()

    def missing(self, printed: str) -> list[str]:
        """The first piece that is not printed behind the one before it; empty where all are."""
        text, at = _plain(printed), 0
        for piece in self.pieces:
            wanted = _plain("\n".join(piece))
            found = text.find(wanted, at)
            if found < 0:
                return piece
            at = found + len(wanted)
        return []

    def updated(self, printed: str) -> list[list[str]]:
        """The pieces as they are printed now: those that hold as they are, others from the line
        most like their first one to the line most like their last, if possible as many."""
        lines, at, out = [line.rstrip() for line in printed.splitlines()], 0, []
        for piece in self.pieces:
            first = _most_like(piece[0], lines, at, at, weight=0.0)
            last = _most_like(piece[-1], lines, first, first + len(piece) - 1, weight=0.5)
            holds = _plain("\n".join(piece)) in _plain("\n".join(lines[at:]))
            out.append(piece if holds else lines[first : last + 1])
            at = last + 1
        return out


def commands(code: str) -> Iterator[Command]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        typed, *shown = part.replace("\\\n", " ").splitlines()
        exit_code = _EXIT.search(typed)
        pieces: list[list[str]] = [[]]
        for line in shown:
            if line.strip() == GAP:
                pieces.append([])
            elif line.strip():
                pieces[-1].append(line)
        yield Command(
            shlex.split(typed, comments=True),
            int(exit_code[1]) if exit_code else 0,
            [piece for piece in pieces if piece],
        )


def rewritten(page: Path, code: str, outputs: list[tuple[Command, str]]) -> None:
    """Write the block `code` of a page anew, with what its commands print now."""
    blocks = re.split(r"^(?=\$ )", code, flags=re.MULTILINE)[1:]
    new = []
    for block, (command, printed) in zip(blocks, outputs, strict=True):
        for old, now in zip(command.pieces, command.updated(printed), strict=True):
            block = block.replace("\n".join(old), "\n".join(line for line in now if line.strip()))
        new.append(block)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(code, "".join(new)), encoding="utf-8")


def _most_like(line: str, lines: list[str], start: int, near: int, *, weight: float) -> int:
    """The line that is most like it; the further from `near`, by `weight`, the less so."""

    def unlike(i: int) -> float:
        ratio = difflib.SequenceMatcher(None, line, lines[i]).ratio()
        return weight * abs(i - near) / len(lines) - ratio

    return min(range(start, len(lines)), key=unlike)


def _plain(text: str) -> str:
    return " ".join(text.split())


def block_commands(page: Path) -> Iterator[tuple[str, list[Command]]]:
    """The console blocks of a page with their commands."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], list(commands(match[1]))
