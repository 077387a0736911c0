"""Repairs of a trace: ids that only flow events hold, impossible times, repeated events.

In: a Trace, and the threads of its host. Out: the trace, changed in place; what was dropped is
counted in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collector import Ints, nanoseconds, to_ids, unique_ids
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# MTIA's event_wait, and the names that other accelerators give to such an event of a stream.
_WAIT = lazy_pattern(
    r"^(?:event|notify|stream|semaphore)[_ ]?wait(?:[_ ]event)?$|^wait[_ ](?:on|for)?[_ ]?event$",
    re.IGNORECASE,
)
_CATEGORIES = ("ac2g", "async_cpu_to_gpu")
# Arrows of profilers that record no launches: they begin where an op does.
_FROM_OPS = ("async_npu", "cpu_to_cuda")
LAUNCHED_BY_OP = "launch"  # the name of such a launch
_MOSTLY = 0.5  # share of device events with a correlation id from which flow events are ignored
Place = tuple[int, int, int]  # device and stream of a kernel, or thread of a launch and 0; ns
_ODD = 0x9E3779B97F4A7C5 | 1  # spreads what it multiplies over 64 bits
_EXACT = 1 << 53  # ns that a double still holds to the ns: 104 days
_LONGEST_PAUSE = 600 * 10**9  # ns; no capture waits longer between two kernels
# At most this share of the events, or this many, beyond such a pause have wrong times.
_FEW_SHARE, _FEW = 0.01, 3
# Columns that distinguish two events with the same start.
_NUMBER = lazy_pattern(r"\d+")
_DEVICE = ("dur", "name", "stream", "device", "correlation", "node", "grid")
_OPS = ("dur", "name", "thread", "external", "call")
_LAUNCHES = ("dur", "name", "thread", "correlation")
_ANNOTATIONS = ("dur", "name", "thread", "module")


def take_ids_from_flow_events(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Take correlation ids from flow events where most device events have none.

    A flow event of a Chrome trace begins with its launch, on the launch's thread, and ends where
    the kernel begins, on its stream. The file is read once more.
    """
    device, launches = trace.device, trace.launches
    few = (device["correlation"] >= 0).mean() < _MOSTLY if len(device["ts"]) else False
    if few and len(launches["ts"]):
        begins, ends = _read_arrows(trace.source, _CATEGORIES, threads)
        _fill_ids(device, ends, device["device"], device["stream"])
        launched = {(thread, 0, ts): ident for ts, ident, thread in begins}
        _fill_ids(launches, launched, launches["thread"], np.zeros_like(launches["ts"]))


def move_uncorrelated_launches(trace: Trace) -> None:
    """Move launches without a correlation id to `other_calls`."""
    launches = trace.launches
    known = launches["correlation"] >= 0
    trace.launches = _select(launches, known)
    trace.other_calls = {name: launches[name][~known] for name in trace.other_calls}


def _read_arrows(
    source: Source, categories: Sequence[str], threads: dict[tuple[Any, Any], int]
) -> tuple[list[tuple[int, int, int]], dict[Place, int]]:
    """Read the flow events of some categories.

    Returns:
        Time (ns), correlation id and thread of each begin, and the correlation ids of the ends.
    """
    begins: list[tuple[int, int, int]] = []
    ends: dict[Place, int] = {}
    for events in Source(source.path, source.member).blocks():
        arrows = [e for e in events if e.cat in categories and e.ph in ("s", "f")]
        times = nanoseconds([e.ts for e in arrows]).tolist()
        for arrow, ident, ts in zip(arrows, to_ids([e.id for e in arrows]), times, strict=True):
            if arrow.ph == "f":
                ends[(*to_ids([arrow.pid, arrow.tid]), ts)] = ident
            elif (thread := threads.get((arrow.pid, arrow.tid))) is not None:
                begins.append((ts, ident, thread))
    return begins, ends


def add_launches_from_arrows(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Make launches of no duration where arrows from ops to kernels begin.

    This is for formats that record no launches. The file is read once more.
    """
    begins, ends = _read_arrows(trace.source, _FROM_OPS, threads)
    _fill_ids(trace.device, ends, trace.device["device"], trace.device["stream"])
    known = np.array(begins, np.int64).reshape(-1, 3)
    absent = np.full(len(begins), -1)
    zero = np.zeros_like(absent)
    columns = {"ts": known[:, 0], "correlation": known[:, 1], "thread": known[:, 2]}
    columns |= {"dur": zero, "name": zero + len(trace.names)}
    trace.launches = {name: columns.get(name, absent) for name in trace.launches}
    trace.names.append(LAUNCHED_BY_OP)


def _fill_ids(table: dict[str, Ints], arrows: dict[Place, int], first: Ints, second: Ints) -> None:
    """Set the correlation ids that are missing, by the place and time of each event."""
    lost = np.flatnonzero(table["correlation"] < 0)
    places = zip(*(c[lost].tolist() for c in (first, second, table["ts"])), strict=True)
    table["correlation"][lost] = [arrows.get(place, -1) for place in places]


def move_waits(trace: Trace) -> None:
    """Move device events in which a stream waits for another one from `device` to `waits`.

    The device does no work in that time.
    """
    names = unique_ids(trace.device["name"])
    waits = [i for i in names.tolist() if _WAIT.search(trace.names[i])]
    rows = np.isin(trace.device["name"], waits)
    trace.waits = _select(trace.device, rows)
    trace.device = _select(trace.device, ~rows) if waits else trace.device


def drop_invalid_events(trace: Trace) -> None:
    """Drop repeated events, and device events far in time from nearly all others.

    Raises PrunescopeError where many events are months apart.
    """
    twice = _find_repeats(trace.device, _DEVICE) if trace.on_device else _find_repeated_ops(trace)
    trace.twice = int(twice.sum())
    if trace.twice:
        trace.device = _select(trace.device, ~_find_repeats(trace.device, _DEVICE))
        trace.ops = _select(trace.ops, ~_find_repeated_ops(trace))
        trace.launches = _select(trace.launches, ~_find_repeats(trace.launches, _LAUNCHES))
        trace.annotations = _select(
            trace.annotations, ~_find_repeats(trace.annotations, _ANNOTATIONS)
        )
    if trace.on_device:
        _drop_distant(trace)


def close_open_annotations(trace: Trace) -> None:
    """Give the last annotation of its kind the median duration of its like, where it has none.

    A profiler that stops within a range writes it without a duration, and what ran in it would be
    in no range. Names that differ in their numbers alone are of one kind.
    """
    notes = trace.annotations
    is_open = (notes["dur"] == 0) & (notes["module"] == 0)
    if not is_open.any():
        return
    kinds = [_NUMBER.sub("#", trace.names[i]) for i in notes["name"].tolist()]
    rows_of_kind: dict[tuple[str, int], list[int]] = {}
    order = np.argsort(notes["ts"], kind="stable")
    for row in order[notes["module"][order] == 0].tolist():
        rows_of_kind.setdefault((kinds[row], int(notes["thread"][row])), []).append(row)
    for rows in rows_of_kind.values():
        *closed, last = rows
        if is_open[last] and closed and not is_open[closed].any():
            notes["dur"][last] = int(np.median(notes["dur"][closed]))


def _select(table: dict[str, Ints], keep: NDArray[np.bool_]) -> dict[str, Ints]:
    """Return the rows of a table that a mask selects."""
    return {name: column[keep] for name, column in table.items()}


def _find_repeated_ops(trace: Trace) -> NDArray[np.bool_]:
    """Mark repeated ops.

    Those without an id are kept, since two of one name may begin and end in the same µs.
    """
    return _find_repeats(trace.ops, _OPS) & (trace.ops["external"] >= 0)


def _find_repeats(table: dict[str, Ints], columns: tuple[str, ...]) -> NDArray[np.bool_]:
    """Mark the rows that equal an earlier row in `columns` and `ts`."""
    repeats = np.zeros(len(table["ts"]), bool)
    near = _find_shared(table["ts"])
    if not len(near):
        return repeats
    mixed = table["ts"][near].copy()
    for name in columns:
        mixed = mixed * _ODD + table[name][near]  # wraps: equal rows stay equal
    near = near[_find_shared(mixed)]
    near = near[np.lexsort([near, *(table[name][near] for name in columns), table["ts"][near]])]
    equal = np.ones(max(0, len(near) - 1), bool)
    for name in ("ts", *columns):
        values = table[name][near]
        equal &= values[1:] == values[:-1]
    repeats[near[1:][equal]] = True
    return repeats


def _find_shared(values: Ints) -> Ints:
    """Return the rows whose value occurs more than once; the others need no comparison."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    is_shared = np.zeros(len(values), bool)
    is_shared[order[same]] = is_shared[order[same + 1]] = True
    return np.flatnonzero(is_shared)


def _drop_distant(trace: Trace) -> None:
    """Drop device events beyond a pause longer than any capture has, if they are few.

    Few such events have wrong times. Many mean that another capture is in the file, which adds a
    caveat, or raises PrunescopeError if the times are too far apart for a double.
    """
    ts = trace.device["ts"]
    if int(ts.max()) - int(ts.min()) <= _LONGEST_PAUSE:
        return
    ts = np.sort(ts)
    cuts = np.flatnonzero(np.diff(ts) > _LONGEST_PAUSE)
    if not len(cuts):
        return
    bounds = np.concatenate(([0], cuts + 1, [len(ts)]))
    sizes = np.diff(bounds)
    most = int(np.argmax(sizes))
    far = len(ts) - int(sizes[most])
    if far > max(_FEW, _FEW_SHARE * len(ts)) or 4 * far > len(ts):
        pause = int(np.diff(ts)[cuts].max())
        if int(ts[-1]) - int(ts[0]) > _EXACT:
            raise trace.source.error(
                f"its device events lie up to {pause / 1e9:,.0f} s apart, as in no capture",
                "the times of the trace are damaged: export it again",
            )
        trace.caveats.append(warning("events-far-apart", seconds=pause / 1e9))
        return
    first, last = ts[bounds[most]], ts[bounds[most + 1] - 1]
    keep = (trace.device["ts"] >= first) & (trace.device["ts"] <= last)
    trace.device = _select(trace.device, keep)
    trace.dropped += far
    trace.kernels_dropped += far
