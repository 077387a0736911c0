"""A trace read by several processes, each every n-th block, and joined as if one had read it.

In: a file and a share of its blocks. Out: the columns of that share as bytes (msgpack); of all
shares a Source and a Collector, with the ids that one process reading all would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prunescope.analysis.trace.collector import COLUMNS, NONE, Call, Collector, Ints
from prunescope.analysis.trace.event import LEAN
from prunescope.analysis.trace.reader import Source

# Columns that hold ids, and the table whose entries they number.
_IDS = {
    "name": "names", "kernel": "names", "label": "names", "thread": "threads", "call": "calls",
    "grid": "grids", "block": "grids", "collective": "collectives",
}  # fmt: skip
_TABLES = ("names", "threads", "calls", "grids", "collectives")


class ReadShare(msgspec.Struct, array_like=True):
    """The rows that one process read.

    `known` is how many entries each table of keys (_TABLES) had after each block. `rows` is, for
    each table of events, how many rows came from each block, and its columns (int64, one after the
    other).
    """

    has_end: bool
    meta: dict[str, Any]
    cut: bool
    behind: int
    malformed: int
    repaired: bool
    dropped: dict[str, int]
    stacks: int
    untimed: int
    unread: dict[str, list[int]]
    uncategorised: int
    names: list[str]
    threads: list[tuple[Any, Any]]
    calls: list[Call]
    grids: list[tuple[int, ...]]
    collectives: list[tuple[bytes, ...]]
    known: list[tuple[int, ...]]
    rows: dict[str, tuple[list[int], bytes]]


_DECODER = msgspec.msgpack.Decoder(ReadShare)


def read_share(path: Path, member: str | None, *, index: int, count: int) -> bytes:
    """Read the `index`-th of `count` shares of a trace, and encode it.

    Raises NotSharedError where the blocks cannot be separated without decoding all of them, and
    whatever the reading of a trace raises.
    """
    source = Source(path, member, share=(index, count), decoder=LEAN)
    collect = Collector()
    known: list[tuple[int, ...]] = []
    counts: dict[str, list[int]] = {group: [] for group in COLUMNS}
    for events in source.blocks():
        before = {group: table.count for group, table in collect.tables.items()}
        collect.add(events)
        collect.add_samples(source.take_samples())
        known.append(tuple(len(getattr(collect, name)) for name in _TABLES))
        for group, table in collect.tables.items():
            counts[group].append(table.count - before[group])
    share = ReadShare(
        has_end=source.has_end,
        meta=source.meta,
        cut=source.cut,
        behind=source.behind,
        malformed=source.malformed,
        repaired=source.repaired,
        dropped=collect.dropped,
        stacks=collect.stacks,
        untimed=collect.untimed,
        unread=collect.unread,
        uncategorised=collect.uncategorised,
        names=list(collect.names),
        threads=list(collect.threads),
        calls=list(collect.calls),
        grids=list(collect.grids),
        collectives=list(collect.collectives),
        known=known,
        rows={
            group: (counts[group], table.together().tobytes())
            for group, table in collect.tables.items()
        },
    )
    return msgspec.msgpack.encode(share)


def join_shares(
    path: Path, member: str | None, parts: Sequence[bytes]
) -> tuple[Source, Collector] | None:
    """Join all shares as one process would have read them; None if they are not of one file."""
    try:
        shares = [_DECODER.decode(part) for part in parts]
    except msgspec.DecodeError:
        return None
    last = [share for share in shares if share.has_end]
    if len(last) != 1:
        return None
    source, collect = Source(path, member, decoder=LEAN), Collector()
    source.meta, source.cut, source.behind = last[0].meta, last[0].cut, last[0].behind
    source.malformed = sum(share.malformed for share in shares)
    source.repaired = any(share.repaired for share in shares)
    collect.stacks = sum(share.stacks for share in shares)
    collect.untimed = sum(share.untimed for share in shares)
    for share in shares:
        for category, counts in share.unread.items():
            before = collect.unread.get(category, [0, 0])
            collect.unread[category] = [a + b for a, b in zip(before, counts, strict=True)]
    collect.uncategorised = sum(share.uncategorised for share in shares)
    for name in _TABLES:
        table = getattr(collect, name)
        for key in _entries_in_order(shares, name):
            table.setdefault(key, len(table))
    for group in COLUMNS:
        collect.dropped[group] = sum(share.dropped[group] for share in shares)
        _join_rows(shares, group, collect)
    return source, collect


def _entries_in_order(shares: Sequence[ReadShare], name: str) -> Iterator[Any]:
    """Yield the entries of a table of keys in the order in which the blocks brought them."""
    which = _TABLES.index(name)
    entries = [getattr(share, name) for share in shares]
    for number in range(max(len(share.known) for share in shares)):
        for share, own in zip(shares, entries, strict=True):
            if number < len(share.known):
                begin = share.known[number - 1][which] if number else 0
                yield from own[begin : share.known[number][which]]


def _join_rows(shares: Sequence[ReadShare], group: str, collect: Collector) -> None:
    """Add the rows of one table in the order of the file, with ids that hold for all shares."""
    names = COLUMNS[group]
    blocks: list[tuple[int, int, Ints]] = []  # its number among those of its share, the share
    for index, share in enumerate(shares):
        counts, data = share.rows[group]
        table = np.frombuffer(data, np.int64).reshape(len(names), -1).copy()
        for name, kind in _IDS.items():
            if name in names:
                row = names.index(name)
                joined = getattr(collect, kind)
                ids = [*(joined[key] for key in getattr(share, kind)), NONE]  # -1 finds the last
                table[row] = np.array(ids, np.int64)[table[row]]
        parts = np.split(table, np.cumsum(counts)[:-1], axis=1) if counts else []
        blocks += [(number, index, part) for number, part in enumerate(parts)]
    for _, _, part in sorted(blocks, key=lambda block: block[:2]):
        collect.tables[group].append(part)
