"""Repairs of a trace: ids that only flow events hold, impossible times, repeated events.

In: a Trace, and the threads of its host. Out: the trace, changed in place; what was dropped is
counted in it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collect import Ints, ids_of, nanoseconds, unique_ids
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.reader import Source

# MTIA's event_wait, and the names that other accelerators give to such an event of a stream.
_WAIT = re.compile(
    r"^(?:event|notify|stream|semaphore)[_ ]?wait(?:[_ ]event)?$|^wait[_ ](?:on|for)?[_ ]?event$",
    re.IGNORECASE,
)
_CATEGORIES = ("ac2g", "async_cpu_to_gpu")
# Arrows that begin where an op does, of profilers that record no launches.
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
_DEVICE = ("dur", "name", "stream", "device", "correlation", "node", "grid")
_OPS = ("dur", "name", "thread", "external", "call")
_LAUNCHES = ("dur", "name", "thread", "correlation")
_ANNOTATIONS = ("dur", "name", "thread", "module")


def take_ids_of_flows(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Take correlation ids from the flow events of a Chrome trace where most device events have
    none, which reads the file once more. A flow event begins with its launch, on the launch's
    thread, and ends where the kernel begins, on its stream."""
    device, launches = trace.device, trace.launches
    few = (device["correlation"] >= 0).mean() < _MOSTLY if len(device["ts"]) else False
    if few and len(launches["ts"]):
        begins, ends = _arrows(trace.source, threads)
        none = np.zeros_like(launches["ts"])
        _fill(device, ends, device["device"], device["stream"])
        _fill(launches, begins, launches["thread"], none)


def set_apart_uncorrelated(trace: Trace) -> None:
    """Move launches without an id to `other_calls`."""
    launches = trace.launches
    known = launches["correlation"] >= 0
    trace.launches = _kept(launches, known)
    trace.other_calls = {name: launches[name][~known] for name in trace.other_calls}


def _arrows(
    source: Source, threads: dict[tuple[Any, Any], int]
) -> tuple[dict[Place, int], dict[Place, int]]:
    """Correlation ids of flow events by where they begin, and by where they end."""
    begins: dict[Place, int] = {}
    ends: dict[Place, int] = {}
    for events in Source(source.path, source.member).blocks():
        arrows = [e for e in events if e.ph in ("s", "f") and e.cat in _CATEGORIES]
        times = nanoseconds([e.ts for e in arrows]).tolist()
        for arrow, ident, ts in zip(arrows, ids_of([e.id for e in arrows]), times, strict=True):
            if arrow.ph == "f":
                ends[(*ids_of([arrow.pid, arrow.tid]), ts)] = ident
            elif (thread := threads.get((arrow.pid, arrow.tid))) is not None:
                begins[thread, 0, ts] = ident
    return begins, ends


def launch_by_arrows(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Launches of no duration where arrows from ops to kernels begin, for a format without any;
    reads the file once more."""
    begins: list[tuple[int, int, int]] = []  # ns, id, thread
    ends: dict[Place, int] = {}
    for events in Source(trace.source.path, trace.source.member).blocks():
        arrows = [e for e in events if e.cat in _FROM_OPS and e.ph in ("s", "f")]
        times = nanoseconds([e.ts for e in arrows]).tolist()
        for arrow, ident, ts in zip(arrows, ids_of([e.id for e in arrows]), times, strict=True):
            if arrow.ph == "f":
                ends[(*ids_of([arrow.pid, arrow.tid]), ts)] = ident
            elif (thread := threads.get((arrow.pid, arrow.tid))) is not None:
                begins.append((ts, ident, thread))
    _fill(trace.device, ends, trace.device["device"], trace.device["stream"])
    known = np.array(begins, np.int64).reshape(-1, 3)
    absent = np.full(len(begins), -1)
    zero = np.zeros_like(absent)
    columns = {"ts": known[:, 0], "correlation": known[:, 1], "thread": known[:, 2]}
    columns |= {"dur": zero, "name": zero + len(trace.names)}
    trace.launches = {name: columns.get(name, absent) for name in trace.launches}
    trace.names.append(LAUNCHED_BY_OP)


def _fill(table: dict[str, Ints], arrows: dict[Place, int], first: Ints, second: Ints) -> None:
    lost = np.flatnonzero(table["correlation"] < 0)
    places = zip(*(c[lost].tolist() for c in (first, second, table["ts"])), strict=True)
    table["correlation"][lost] = [arrows.get(place, -1) for place in places]


def set_waits_apart(trace: Trace) -> None:
    """Move device events in which a stream waits for another one from `device` to `waits`: the
    device does no work then."""
    names = unique_ids(trace.device["name"])
    waits = [i for i in names.tolist() if _WAIT.search(trace.names[i])]
    rows = np.isin(trace.device["name"], waits)
    trace.waits = _kept(trace.device, rows)
    trace.device = _kept(trace.device, ~rows) if waits else trace.device


def clean(trace: Trace) -> None:
    """Drop repeated events, and device events far in time from nearly all others.

    Raises PrunescopeError where many events are months apart.
    """
    twice = _repeated(trace.device, _DEVICE) if trace.on_device else _repeated_ops(trace)
    trace.twice = int(twice.sum())
    if trace.twice:
        trace.device = _kept(trace.device, ~_repeated(trace.device, _DEVICE))
        trace.ops = _kept(trace.ops, ~_repeated_ops(trace))
        trace.launches = _kept(trace.launches, ~_repeated(trace.launches, _LAUNCHES))
        trace.annotations = _kept(trace.annotations, ~_repeated(trace.annotations, _ANNOTATIONS))
    if trace.on_device:
        _drop_far(trace)


def _kept(table: dict[str, Ints], keep: NDArray[np.bool_]) -> dict[str, Ints]:
    return {name: column[keep] for name, column in table.items()}


def _repeated_ops(trace: Trace) -> NDArray[np.bool_]:
    """Ops without an id are kept: two of one name may begin and end in the same µs."""
    return _repeated(trace.ops, _OPS) & (trace.ops["external"] >= 0)


def _repeated(table: dict[str, Ints], columns: tuple[str, ...]) -> NDArray[np.bool_]:
    """Rows that equal an earlier row in `columns` and `ts`."""
    out = np.zeros(len(table["ts"]), bool)
    near = _shared_values(table["ts"])
    if not len(near):
        return out
    mixed = table["ts"][near].copy()
    for name in columns:
        mixed = mixed * _ODD + table[name][near]  # wraps: equal rows stay equal
    near = near[_shared_values(mixed)]
    near = near[np.lexsort([near, *(table[name][near] for name in columns), table["ts"][near]])]
    equal = np.ones(max(0, len(near) - 1), bool)
    for name in ("ts", *columns):
        values = table[name][near]
        equal &= values[1:] == values[:-1]
    out[near[1:][equal]] = True
    return out


def _shared_values(values: Ints) -> Ints:
    """Rows whose value occurs more than once; the others need no comparison."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    found = np.zeros(len(values), bool)
    found[order[same]] = found[order[same + 1]] = True
    return np.flatnonzero(found)


def _drop_far(trace: Trace) -> None:
    """Drop device events beyond a pause longer than any capture has, if they are few (wrong times);
    if many, another capture is in the file: add a caveat."""
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
    trace.device = _kept(trace.device, keep)
    trace.dropped += far
    trace.kernels_dropped += far
