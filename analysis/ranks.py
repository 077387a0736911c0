"""The traces of several ranks: in, a folder or a zip of Chrome traces; out, the file of each rank.

A rank is told by the file's name, else by `distributedInfo` in the trace; where neither tells all
of them apart, traces go by their file names. Files that are no trace are left out and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from analysis.reader import Source
from analysis.unpack import members
from taxonomy.errors import PrunescopeError

_SUFFIXES = (".json", ".json.gz")
_NUMBER = re.compile(r"(?:rank|(?<![a-z])tp)[-_.]?(\d{1,6})(?!\d)", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_MOST = 1024


@dataclass(frozen=True)
class Part:
    """One trace: a file, or a member of a zip."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """The name of its file, without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name


def holds_traces(folder: Path) -> bool:
    """Whether a folder has files that may be Chrome traces."""
    return bool(_files(folder))


def find_parts(path: Path) -> tuple[dict[str, Part], list[str]]:
    """The traces in a folder or a zip by the name of their phase, and what was left out.

    One trace alone is called "". Raises PrunescopeError where there is none, or too many.
    """
    if path.is_dir():
        parts = [Part(file) for file in _files(path)]
    else:
        parts = [Part(path, member) for member in members(path)]
    if len(parts) > _MOST:
        raise PrunescopeError(
            f"{path.name} holds {len(parts)} traces, more than {_MOST}",
            hint="give the folder of one run, with a trace a rank",
        )
    if len(parts) < 2:
        return {"": parts[0]} if parts else {}, []
    numbers: list[int | None] = []
    kept: list[Part] = []
    left_out: list[str] = []
    for part in parts:
        meta = _head(part)
        if meta is None:
            left_out.append(f"{part.name} is no Chrome trace: left out")
            continue
        kept.append(part)
        numbers.append(_rank(part, meta))
    if not kept:
        raise PrunescopeError(
            f"{path.name} holds no Chrome trace",
            hint="give a folder or zip with what torch.profiler exported on each rank",
        )
    if len(kept) == 1:
        return {"": kept[0]}, left_out
    return _named(kept, numbers), left_out


def _files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir()
        if p.name.endswith(_SUFFIXES) and not p.name.startswith(".") and p.is_file()
    )  # fmt: skip


def _head(part: Part) -> dict[str, Any] | None:
    """The metadata in front of the events; None for what is no trace."""
    source = Source(part.path, part.member)
    try:
        next(iter(source.blocks()), None)
    except (PrunescopeError, OSError):
        return None
    return source.meta


def _rank(part: Part, meta: dict[str, Any]) -> int | None:
    found = _NUMBER.search(part.name)
    if found is not None:
        return int(found[1])
    info = meta.get("distributedInfo")
    rank = info.get("rank") if isinstance(info, dict) else None
    return rank if type(rank) is int and 0 <= rank < 1_000_000 else None


def _named(parts: list[Part], numbers: list[int | None]) -> dict[str, Part]:
    known = [n for n in numbers if n is not None]
    if len(set(known)) == len(parts):
        ordered = sorted(zip(known, parts, strict=True), key=lambda pair: pair[0])
        return {f"rank{number}": part for number, part in ordered}
    return dict(zip(_distinct(part.name for part in parts), parts, strict=True))


def _distinct(names: Iterable[str]) -> list[str]:
    """Names of files as names of phases, which become parts of file names again."""
    out: list[str] = []
    for name in names:
        stem = re.sub(r"(\.pt)?(\.trace)?\.json(\.gz)?$", "", name)
        plain = _UNSAFE.sub("_", stem)[:60] or "trace"
        out.append(plain if plain not in out else f"{plain}-{len(out)}")
    return out
