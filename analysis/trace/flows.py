"""Correlation ids from the flow arrows of a trace whose events have none of their own.

In: a Trace as it was read. Out: the same, device events and launches with the id of the arrow from
one to the other. A tool that strips arguments leaves the arrows; profilers write both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prunescope.analysis.trace.collect import Ints, ids_of, nanoseconds
from prunescope.analysis.trace.reader import Source

if TYPE_CHECKING:
    from prunescope.analysis.trace.load import Trace

_CATEGORIES = ("ac2g", "async_cpu_to_gpu")
_AS_A_RULE = 0.5  # share of device events with an id of their own, from which on no arrow counts
Place = tuple[int, int, int]  # device and stream of a kernel, or thread of a launch and 0; ns


def correlate(trace: Trace, threads: dict[tuple[Any, Any], int]) -> None:
    """Take the ids from the arrows where most device events have none; launches that have none
    then are dropped. An arrow begins with its launch, on its thread, and ends where the kernel
    begins, on its stream. Reads the file once more, only then."""
    device, launches = trace.device, trace.launches
    few = (device["correlation"] >= 0).mean() < _AS_A_RULE if len(device["ts"]) else False
    if few and len(launches["ts"]):
        begins, ends = _arrows(trace.source, threads)
        none = np.zeros_like(launches["ts"])
        _fill(device, ends, device["device"], device["stream"])
        _fill(launches, begins, launches["thread"], none)
    known = launches["correlation"] >= 0
    trace.launches = {name: column[known] for name, column in launches.items()}


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
