"""The traces of several ranks, found in a folder, a zip, a tar or an export of Nsight Systems.

In: the path; in an export each device is a rank. Out: the file of each rank. A rank is identified
by `distributedInfo` in the trace, else by the file's name; where these are not all distinct, traces
go by their file names. Files that are no trace are left out and named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.trace.nsys import device_number, devices_of
from prunescope.analysis.trace.nsys_file import SUFFIX as NSYS_SUFFIX
from prunescope.analysis.trace.nsys_file import is_nsys
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.unpack import SUFFIXES, members
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.runs.serving import SERVING

_NUMBER = lazy_pattern(r"(?:rank|(?<![a-z])tp)[-_.]?(\d{1,6})(?!\d)", re.IGNORECASE)
# SGLang's names, "-TP-0-DP-1": with a second axis, none of the numbers is the rank.
_AXIS = lazy_pattern(r"(?<![a-z])(?:tp|dp|pp|ep)[-_.]?\d", re.IGNORECASE)
_UNSAFE = lazy_pattern(r"[^A-Za-z0-9_.-]+")
_MOST = 1024


class TraceFile(Struct, frozen=True):
    """One trace: a file, a member of a zip or tar, or a device of an export of Nsight Systems.

    `all_ranks` is set if the export is all that was given, so that the number of a device is its
    rank.
    """

    path: Path
    member: str | None = None
    all_ranks: bool = False

    @property
    def name(self) -> str:
        """The name of the file without folders; for one of several devices, its number too."""
        if self.member is None:
            return self.path.name
        if device_number(self.member) is not None:
            return f"{self.path.stem} {self.member}"
        return PurePosixPath(self.member).name


class FoundTraces(Struct):
    """The traces of a folder or archive by the name of their phase, "" for a single one.

    `ranks_of` is the rank of each of several, as stated in front of its events. `left_out` names
    the files that are no trace; `broken` is set if one of these is named as a rank.
    """

    parts: dict[str, TraceFile] = field(default_factory=dict)
    ranks_of: dict[str, Rank] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    broken: bool = False


class Rank(Struct, frozen=True):
    """The number of a rank and the number of ranks, as a trace states them; None if it does not."""

    number: int | None
    world: int | None


def holds_traces(folder: Path) -> bool:
    """Return whether a folder has files that may be traces."""
    return bool(trace_files(folder))


def find_traces(path: Path) -> FoundTraces:
    """Find the traces in a folder, a zip, a tar or an export of Nsight Systems.

    Raises PrunescopeError where there is no readable trace, or there are more than 1,024.
    """
    if is_nsys(path):
        devices = [replace(alone, all_ranks=True) for alone in _devices(path)]
        numbered = {f"rank{i}": device for i, device in enumerate(devices)}
        return FoundTraces(
            numbered if len(devices) > 1 else {"": devices[0]},
            {name: Rank(i, len(devices)) for i, name in enumerate(numbered) if len(devices) > 1},
        )
    if path.is_dir():
        parts = [part for file in trace_files(path) for part in _parts_of(file)]
    else:
        parts = [TraceFile(path, member) for member in members(path)]
    if len(parts) > _MOST:
        raise PrunescopeError(
            f"{path.name} holds {len(parts)} traces, more than {_MOST}",
            hint="give the folder of one run, with a trace a rank",
        )
    if len(parts) < 2:
        return FoundTraces({"": parts[0]} if parts else {})
    heads = [(part, _read_head(part)) for part in parts]
    kept = [part for part, meta in heads if meta is not None]
    left_out = [part.name for part, meta in heads if meta is None]
    traces = FoundTraces(left_out=left_out, broken=any(_NUMBER.search(name) for name in left_out))
    if not kept:
        raise PrunescopeError(
            f"{path.name} holds no trace that can be read",
            hint="give a folder, zip or tar with what torch.profiler exported on each rank, or a "
            "folder with an SQLite export of Nsight Systems a rank",
        )
    if len(kept) == 1:
        traces.parts = {"": kept[0]}
        return traces
    ranks = {part: rank_of(part, meta) for part, meta in heads if meta is not None}
    traces.parts = _name_parts(kept, [rank.number for rank in ranks.values()])
    traces.ranks_of = {name: ranks[part] for name, part in traces.parts.items()}
    return traces


def _devices(path: Path) -> list[TraceFile]:
    """List the devices of an export; an export of a single device is one trace."""
    return [TraceFile(path, member) for member in devices_of(path)] or [TraceFile(path)]


def _parts_of(file: Path) -> list[TraceFile]:
    """List the traces in one file of a folder; what is wrong with it shows when it is read."""
    try:
        return _devices(file) if is_nsys(file) else [TraceFile(file)]
    except PrunescopeError:
        return [TraceFile(file)]


def missing(name: str, ranks: Iterable[Rank]) -> Notice | None:
    """Warn of the ranks that a folder or archive lacks; None if none is known to be missing."""
    ranks = list(ranks)
    known = {rank.number for rank in ranks if rank.number is not None}
    world = max((rank.world for rank in ranks if rank.world is not None), default=0)
    first, last = (0, world) if world else (min(known, default=0), max(known, default=0))
    absent = sorted(set(range(first, last)) - known) if known and last <= _MOST else []
    if not absent:
        return None
    return warning("ranks-missing", folder=name, ranks=absent, world=world)


def twice(name: str, ranks: Iterable[Rank]) -> Notice | None:
    """Warn of the ranks with several traces in a folder or archive; None if none has."""
    known = Counter(rank.number for rank in ranks if rank.number is not None)
    often = sorted(n for n, count in known.items() if count > 1)
    return warning("ranks-twice", folder=name, ranks=often) if often else None


def trace_files(folder: Path) -> list[Path]:
    """List the files of a folder that may be traces, by name."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.name.endswith((*SUFFIXES, NSYS_SUFFIX))
        and not p.name.startswith(".")
        and p.name != SERVING
        and p.is_file()
    )


def _read_head(part: TraceFile) -> dict[str, Any] | None:
    """Read the metadata in front of the events; None for a file that is no trace."""
    source = Source(part.path, part.member)
    try:
        if is_nsys(part.path):
            devices_of(part.path)
            return {}
        next(iter(source.blocks()), None)
    except (PrunescopeError, OSError):
        return None
    return source.meta


def rank_of(part: TraceFile, meta: dict[str, Any]) -> Rank:
    """Return the rank of a trace, by its metadata, else by its file's name.

    In a world of one, every trace is of rank 0, so that its metadata gives no rank. The number of a
    device is its rank in a file that is alone; next to other files, which may be of other nodes,
    the rank is unknown.
    """
    if part.member is not None and is_nsys(part.path):
        return Rank(device_number(part.member) if part.all_ranks else None, None)
    world = _distributed_number(meta, "world_size")
    number = _distributed_number(meta, "rank") if world != 1 else None
    return Rank(rank_in_name(part.name) if number is None else number, world)


def rank_in_name(name: str) -> int | None:
    """Return the rank that a file's name states; None if it states none, or several axes."""
    number = _NUMBER.search(name)
    several = len(_AXIS.findall(name)) > 1 and "rank" not in name.lower()
    return None if number is None or several else int(number[1])


def _distributed_number(meta: dict[str, Any], key: str) -> int | None:
    """Return a number of the trace's `distributedInfo`; None if it is missing or invalid."""
    info = meta.get("distributedInfo")
    value = info.get(key) if isinstance(info, dict) else None
    return value if type(value) is int and 0 <= value < 1_000_000 else None


def _name_parts(parts: list[TraceFile], numbers: list[int | None]) -> dict[str, TraceFile]:
    """Name each trace by its rank if all ranks are known and distinct, else by its file."""
    known = [n for n in numbers if n is not None]
    if len(set(known)) == len(parts):
        ordered = sorted(zip(known, parts, strict=True), key=lambda pair: pair[0])
        return {f"rank{number}": part for number, part in ordered}
    return dict(zip(_distinct_names(part.name for part in parts), parts, strict=True))


def _distinct_names(names: Iterable[str]) -> list[str]:
    """Turn names of files into distinct names of phases, which become parts of file names again."""
    distinct: list[str] = []
    for name in names:
        stem = re.sub(r"(\.pt)?(\.trace)?\.json(\.gz|\.zst)?$|\.sqlite$", "", name)
        plain = _UNSAFE.sub("_", stem)[:60] or "trace"
        distinct.append(plain if plain not in distinct else f"{plain}-{len(distinct)}")
    return distinct
