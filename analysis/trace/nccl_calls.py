"""The bytes and ranks of NCCL's calls, from its own NVTX ranges where an export holds them.

In: the ranges of NCCL's domain, with their payloads as JSON or as bytes in the layout of a table of
schemas. Out: a collective for each kernel that one call, or one group of calls, launched. If a
group launched several kernels, it is unknown which of them sends what.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.event import decode_json
from prunescope.analysis.trace.nsys_file import Database

ENTRIES, EVENTS = "NVTX_PAYLOAD_SCHEMA_ENTRIES", "NVTX_EVENTS"
# As NCCL labels the fields of its payloads.
_BYTES, _COMMUNICATOR, _RANKS = "Message size [bytes]", "NCCL communicator ID", "No. of ranks"
# Of the payload types of NVTX (nvToolsExtPayload.h): int, uint64_t, size_t.
_FORMATS = {5: "<i", 18: "<Q", 22: "<Q"}
# Domain, flags, schema, flags, bytes of the payload, bytes of both: before each payload.
_HEADER = struct.Struct("<IIIIQQ")
_MOST = 1 << 50  # bytes of a message; more is a forged number
_PREFIX, _GROUP_START, _GROUP_END = "nccl", "ncclGroupStart", "ncclGroupEnd"
_SEND, _RECEIVE = "Send", "Recv"
# NCCL states the message of one rank; these functions send, or receive, one for each rank.
_SENDS_ALL, _RECEIVES_ALL = ("ReduceScatter", "AlltoAll"), ("AllGather", "AlltoAll")
Fields = dict[str, int]
Layout = dict[str, tuple[int, str]]  # of a field: where it begins, and its format
Key = tuple[bytes, ...]  # of a collective, as a Collector interns it


class NcclRange(NamedTuple):
    """A range of NCCL's domain: its times (ns), thread, function, and the fields of its payload."""

    start: int
    end: int
    thread: int
    name: str
    fields: Fields


class _Span(Struct, frozen=True):
    """A time (`start` to `end`, ns) in which a thread launched what `calls` send."""

    thread: int
    start: int
    end: int
    calls: tuple[NcclRange, ...]


class Payloads:
    """A reader of the payloads of one file.

    `domains` are the numbers of the NVTX domains whose payloads hold sizes.
    """

    def __init__(self, file: Database) -> None:
        self._layouts = _read_layouts(file)
        self.domains = {domain for (domain, _), layout in self._layouts.items() if _BYTES in layout}
        if file.has(EVENTS, "jsonText", "domainId"):
            blocks = file.rows(EVENTS, ("domainId",), where='"jsonText" IS NOT NULL', group=True)
            self.domains |= {row[0] for block in blocks for row in block if type(row[0]) is int}

    def fields(self, binary: Any, text: Any) -> Fields:
        """Return the whole numbers of a payload by their labels; empty if none can be read."""
        return (
            _decode_bytes(binary, self._layouts)
            if isinstance(binary, bytes)
            else _decode_json(text)
        )


def _read_layouts(file: Database) -> dict[tuple[int, int], Layout]:
    """Read where the fields of a payload begin, by domain and schema.

    A schema that two processes lay out differently is left out.
    """
    if not file.has(ENTRIES, "domainId", "schemaId", "type", "name", "offset"):
        return {}
    layouts: dict[tuple[int, int], Layout] = {}
    differs = set()
    columns = ("domainId", "schemaId", "type", "name", "offset")
    for domain, schema, kind, name, offset in (
        row for b in file.rows(ENTRIES, columns) for row in b
    ):
        known = type(domain) is type(schema) is int and kind in _FORMATS and isinstance(name, str)
        at = 0 if offset is None else offset  # of the first field
        if not known or type(at) is not int or not 0 <= at < _HEADER.size * 8:
            continue
        field = (at, _FORMATS[kind])
        if layouts.setdefault((domain, schema), {}).setdefault(name, field) != field:
            differs.add((domain, schema))
    return {key: layout for key, layout in layouts.items() if key not in differs}


def _decode_bytes(binary: bytes, layouts: dict[tuple[int, int], Layout]) -> Fields:
    """Read the fields of a binary payload by the layout that its header names."""
    if len(binary) < _HEADER.size:
        return {}
    domain, _, schema, _, size, _ = _HEADER.unpack_from(binary)
    payload = binary[_HEADER.size : _HEADER.size + size]
    return {
        name: struct.unpack_from(form, payload, at)[0]
        for name, (at, form) in layouts.get((domain, schema), {}).items()
        if at + struct.calcsize(form) <= len(payload)
    }


def _decode_json(text: Any) -> Fields:
    """Read the whole numbers of a JSON payload; empty for any other value."""
    if not isinstance(text, str):
        return {}
    decoded = decode_json(text)
    numbers = decoded.items() if isinstance(decoded, dict) else ()
    return {name: number for name, value in numbers if (number := _whole_number(value)) is not None}


def _whole_number(value: Any) -> int | None:
    """Return a whole number; a text of digits counts, since 64 bits do not fit a double of JSON."""
    if type(value) is int:
        return value
    if not isinstance(value, str) or not value.isascii() or len(value) > 20:
        return None
    digits, base = (value[2:], 16) if value[:2] in ("0x", "0X") else (value, 10)
    try:
        return int(digits, base)
    except ValueError:
        return None


def collectives_of(
    rows: Sequence[NcclRange], launched: Ints, threads: Ints
) -> Iterator[tuple[int, Key]]:
    """Find what the kernels of NCCL send, by the calls that launched them.

    Args:
        rows: The ranges of NCCL's functions.
        launched: When each kernel of NCCL was launched, ns.
        threads: The thread that launched it.

    Yields:
        The index of a kernel that is the only one of its call or group, and what it sends.
    """
    ranks = {
        row.fields[_COMMUNICATOR]: row.fields[_RANKS]
        for row in rows
        if _COMMUNICATOR in row.fields and row.fields.get(_RANKS, 0) > 0
    }
    spans = sorted(_launching_spans(rows), key=lambda span: (span.thread, span.start))
    for thread in {span.thread for span in spans}:
        own = [span for span in spans if span.thread == thread]
        on_thread = np.flatnonzero(threads == thread)
        starts, ends = (np.array([getattr(s, n) for s in own], np.int64) for n in ("start", "end"))
        at = np.searchsorted(starts, launched[on_thread], side="right") - 1
        inside = (at >= 0) & (launched[on_thread] < ends[at])
        counts = np.bincount(at[inside], minlength=len(own))
        for index, which in zip(on_thread[inside].tolist(), at[inside].tolist(), strict=True):
            if counts[which] == 1:
                yield index, _collective_key(own[which].calls, ranks)


def _launching_spans(rows: Sequence[NcclRange]) -> Iterator[_Span]:
    """Return the times in which NCCL launches kernels: single calls, and the ends of groups.

    The calls of a group are launched when its outermost group ends.
    """
    depth: dict[int, int] = {}
    waiting: dict[int, list[NcclRange]] = {}
    for row in sorted(rows, key=lambda nvtx: (nvtx.start, -nvtx.end)):
        thread = row.thread
        if row.name == _GROUP_START:
            depth[thread] = depth.get(thread, 0) + 1
        elif row.name == _GROUP_END:
            depth[thread] = max(0, depth.get(thread, 0) - 1)
            if not depth[thread] and (calls := tuple(waiting.pop(thread, ()))):
                yield _Span(thread, row.start, row.end, calls)
        elif 0 < row.fields.get(_BYTES, 0) < _MOST:
            if depth.get(thread):
                waiting.setdefault(thread, []).append(row)
            else:
                yield _Span(thread, row.start, row.end, (row,))


def _collective_key(calls: Sequence[NcclRange], ranks: dict[int, int]) -> Key:
    """Describe what one kernel sends, as JSON: name, elements sent and received, ranks, format.

    Elements are bytes. The number of ranks is unknown for a communicator that was made before the
    capture.
    """
    names = list(dict.fromkeys(row.name.removeprefix(_PREFIX) for row in calls))
    of_comm = {ranks.get(row.fields.get(_COMMUNICATOR, NONE)) for row in calls}
    count = of_comm.pop() if len(of_comm) == 1 else None
    sizes = [
        _message_sizes(row.name.removeprefix(_PREFIX), row.fields[_BYTES], count) for row in calls
    ]
    sent, received = (sum(size) for size in zip(*sizes, strict=True))
    words = ("+".join(names), sent, received, count, "byte")
    return tuple(b"" if word is None else json.dumps(word).encode() for word in words)


def _message_sizes(name: str, size: int, ranks: int | None) -> tuple[int, int]:
    """Return the bytes that one rank sends and receives for a message of `size` bytes."""
    sent = size * (ranks or 1) if name in _SENDS_ALL else size
    received = size * (ranks or 1) if name in _RECEIVES_ALL else size
    return 0 if name == _RECEIVE else sent, 0 if name == _SEND else received
