"""The bytes that the collectives of a phase send, and their rates, from the kernels' arguments.

In: a `Trace` and its linked rows. Out: a sentence about the largest ones. The bandwidth is that of
the bus, as NCCL's own tests count it: what a link must carry, whatever the algorithm. It is a lower
bound, because the time of a kernel includes its wait for the last rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.link import Linked, taken
from prunescope.analysis.trace.trace_columns import Collective, Trace
from prunescope.taxonomy.dtypes import dtype, itemsize

_SHOWN = 3
_PLAIN = str.maketrans("", "", "_")
_BYTE = "byte"  # c10's, and of a size in bytes


def collective_notes(trace: Trace, linked: Linked) -> list[Notice]:
    """Return a note on the collectives of all steps that take the most time; empty without any."""
    if not trace.on_device or not trace.collectives:
        return []
    which = taken(trace.device["collective"], linked.event)
    rows = np.flatnonzero(which >= 0)
    if not len(rows):
        return []
    ns = np.bincount(which[rows], weights=linked.duration[rows], minlength=len(trace.collectives))
    counts = np.bincount(which[rows], minlength=len(trace.collectives))
    steps = max(1, len(linked.wall))
    order = [int(i) for i in np.argsort(-ns, kind="stable") if counts[i]]
    each = [
        _numbers(trace.collectives[i], float(counts[i] / steps), float(ns[i] / counts[i]))
        for i in order[:_SHOWN]
    ]
    return [note("collectives", each=each, more=len(order) - len(each))]


def _numbers(collective: Collective, count: float, ns: float) -> dict[str, Any]:
    """Return what a note states of one collective."""
    spelled = _spelled(collective.dtype)
    size = 1 if spelled == _BYTE else itemsize(dtype(spelled))
    elements, share = max(collective.sent or 0, collective.received or 0), _share(collective)
    rate = None
    if size is not None and elements and share is not None and ns > 0:
        rate = elements * size * share / ns
    return {
        "count": count,
        "name": collective.name[:40],
        "elements": elements,
        "unit": "bytes" if spelled == _BYTE else dtype(spelled) or "elements",
        "ranks": collective.ranks,
        "ns": ns,
        "gb_per_s": rate,
    }


def _spelled(spelling: str | None) -> str | None:
    """Spell c10's names of number formats (BFloat16, Float, Long) as kineto does elsewhere."""
    return None if spelling is None else spelling.lower()


def _share(collective: Collective) -> float | None:
    """Return how many times its larger buffer a collective sends over a link; None if unknown.

    Source: the bus bandwidth of NCCL's tests (doc/PERFORMANCE.md of nccl-tests).
    """
    if collective.ranks is None or collective.ranks < 2:
        return None
    name = collective.name.lower().translate(_PLAIN)
    part = (collective.ranks - 1) / collective.ranks
    if "allreduce" in name:
        return 2 * part
    if any(kind in name for kind in ("allgather", "reducescatter", "alltoall")):
        return part
    return 1.0 if name in ("broadcast", "reduce", "send", "recv") else None
