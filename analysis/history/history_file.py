"""The file of a history: JSON lines that are only ever added.

In: a path. Out: its lines, oldest first. A line that a killed process left unfinished is skipped,
wherever it is by now: the next append begins a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from prunescope.analysis.schema.history import HistoryLine
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.taxonomy.atomic_write import append_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import decode, plain
from prunescope.taxonomy.scrub import scrub_values

_LARGEST = 256 << 20
_BEGIN = b'{"schema":'  # of every line
_HINT = "give a file that --history wrote, or a new name"


def check_history(path: Path) -> None:
    """Refuse, before any work is done, a file that no line can be added to.

    Raises:
        PrunescopeError: It is no regular file or no history, or its folder does not exist.
    """
    if path.exists() and not path.is_file() or not path.absolute().parent.is_dir():
        raise PrunescopeError(
            f"--history: no regular file in an existing folder: {path}",
            hint="name a file in an existing folder",
        )
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
        if not _is_unfinished(first):
            _read_line(first, f"{path.name} line 1")


def append_lines(path: Path, lines: Sequence[HistoryLine]) -> None:
    """Add lines to a history, which is made where it does not exist."""
    check_history(path)
    text = b"".join(msgspec.json.encode(scrub_values(plain(line))) + b"\n" for line in lines)
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else b"\n" + text
    append_file(path, text)


def read_lines(path: Path) -> tuple[list[HistoryLine], list[Notice]]:
    """Read a history.

    Returns:
        Its lines, and a note on each line that is not whole.

    Raises:
        PrunescopeError: There is no such file, it is too large, or a line in it is that of another
            file.
    """
    if not path.is_file():
        raise PrunescopeError(f"there is no history {path}", hint=_HINT)
    if path.stat().st_size > _LARGEST:
        raise PrunescopeError(f"{path.name} is too large for a history", hint=_HINT)
    texts = path.read_bytes().split(b"\n")
    lines, notices = [], []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        if _is_unfinished(text):
            notices.append(warning("history-cut", file=path.name, line=number))
        else:
            lines.append(_read_line(text, f"{path.name} line {number}"))
    if not lines:
        raise PrunescopeError(f"{path.name} holds no measurement", hint=_HINT)
    return lines, notices


def _is_unfinished(text: bytes) -> bool:
    """Return whether a line begins like one of a history, and is no whole JSON."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text.startswith(_BEGIN)
    return False


def _read_line(text: bytes, where: str) -> HistoryLine:
    """Read one line."""
    return decode(text, HistoryLine, where=where, hint=_HINT)
