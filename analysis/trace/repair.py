"""A trace as it was read, put right: correlation ids that only the flow arrows have, times that no
capture has, and events that stand in a file twice. What is set aside is counted and said.

In: a Trace, and the threads of its host. Out: the same trace, its columns filled in or shortened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.trace.collect import Ints, ids_of, nanoseconds
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.reader import Source

_CATEGORIES = ("ac2g", "async_cpu_to_gpu")
_AS_A_RULE = 0.5  # share of device events with an id of their own, from which on no arrow counts
Place = tuple[int, int, int]  # device and stream of a kernel, or thread of a launch and 0; ns
_ODD = 0x9E3779B97F4A7C5 | 1  # spreads what it multiplies over 64 bits
_EXACT = 1 << 53  # ns that a double still holds to the ns: 104 days
_APART = 600 * 10**9  # no profiler runs for so long between two kernels
# Of the events, and in all: so few on the far side of such a pause have wrong times.
_FEW, _SO_FEW = 0.01, 3
# Columns that tell two events apart where they start at once.
_DEVICE = ("dur", "name", "stream", "device", "correlation", "node", "grid")
_OPS = ("dur", "name", "thread", "external", "call")
_LAUNCHES = ("dur", "name", "thread", "correlation")
_ANNOTATIONS = ("dur", "name", "thread", "module")


def correlate(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Take the ids from the arrows where most device events have none; launches that have none
    then are set aside. An arrow begins with its launch, on its thread, and ends where the kernel
    begins, on its stream. Reads the file once more, only then."""
    device, launches = trace.device, trace.launches
    few = (device["correlation"] >= 0).mean() < _AS_A_RULE if len(device["ts"]) else False
    if few and len(launches["ts"]):
        begins, ends = _arrows(trace.source, threads)
        none = np.zeros_like(launches["ts"])
        _fill(device, ends, device["device"], device["stream"])
        _fill(launches, begins, launches["thread"], none)
    known = launches["correlation"] >= 0
    trace.launches = _kept(launches, known)
    trace.other_calls = {name: launches[name][~known] for name in trace.other_calls}


def _arrows(
    source: Source, threads: dict[tuple[Any, Any], int]
) -> tuple[dict[Place, int], dict[Place, int]]:
    """The ids of arrows by where they begin, and by where they end."""
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


def _fill(table: dict[str, Ints], arrows: dict[Place, int], first: Ints, second: Ints) -> None:
    lost = np.flatnonzero(table["correlation"] < 0)
    places = zip(*(c[lost].tolist() for c in (first, second, table["ts"])), strict=True)
    table["correlation"][lost] = [arrows.get(place, -1) for place in places]


def clean(trace: Trace) -> None:
    """Take out repeated events, and device events far in time from nearly all others.

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
    """Of ops without an id, two of one name may begin and end in the same µs: those are kept."""
    return _repeated(trace.ops, _OPS) & (trace.ops["external"] >= 0)


def _repeated(table: dict[str, Ints], columns: tuple[str, ...]) -> NDArray[np.bool_]:
    """Rows that equal an earlier one in all that is looked at."""
    out = np.zeros(len(table["ts"]), bool)
    near = _alike(table["ts"])
    if not len(near):
        return out
    mixed = table["ts"][near].copy()
    for name in columns:
        mixed = mixed * _ODD + table[name][near]  # wraps: equal rows stay equal
    near = near[_alike(mixed)]
    near = near[np.lexsort([near, *(table[name][near] for name in columns), table["ts"][near]])]
    equal = np.ones(max(0, len(near) - 1), bool)
    for name in ("ts", *columns):
        values = table[name][near]
        equal &= values[1:] == values[:-1]
    out[near[1:][equal]] = True
    return out


def _alike(values: Ints) -> Ints:
    """The rows whose value another row has too: few, so that the rest needs no look."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    found = np.zeros(len(values), bool)
    found[order[same]] = found[order[same + 1]] = True
    return np.flatnonzero(found)


def _drop_far(trace: Trace) -> None:
    """Device events beyond a pause that no capture has: a few have wrong times, many are another
    capture."""
    ts = trace.device["ts"]
    if int(ts.max()) - int(ts.min()) <= _APART:
        return
    ts = np.sort(ts)
    cuts = np.flatnonzero(np.diff(ts) > _APART)
    if not len(cuts):
        return
    bounds = np.concatenate(([0], cuts + 1, [len(ts)]))
    sizes = np.diff(bounds)
    most = int(np.argmax(sizes))
    far = len(ts) - int(sizes[most])
    if far > max(_SO_FEW, _FEW * len(ts)) or 4 * far > len(ts):
        pause = int(np.diff(ts)[cuts].max())
        apart = f"its device events stand up to {pause / 1e9:,.0f} s apart, as in no capture"
        if int(ts[-1]) - int(ts[0]) > _EXACT:
            raise trace.source.error(apart, "the times of the trace are damaged: export it again")
        trace.caveats.append(f"{apart}: some have wrong times, or several captures are in one file")
        return
    first, last = ts[bounds[most]], ts[bounds[most + 1] - 1]
    keep = (trace.device["ts"] >= first) & (trace.device["ts"] <= last)
    trace.device = _kept(trace.device, keep)
    trace.dropped += far
    trace.kernels_dropped += far
